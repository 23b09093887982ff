"""Random small networks that up-sample in many ways, for tests that hold a converted model against its
original."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRIDS: dict[tuple[int, ...], Tensor] = {}
"""What forwards of these networks keep outside of them, as libraries do."""


def grid(x: Tensor) -> Tensor:
    key = tuple(x.shape[-2:])
    if key not in GRIDS:
        GRIDS[key] = torch.linspace(0, 1, key[1], dtype=torch.float64).expand(*key).clone()
    return GRIDS[key].to(x)


class Between(nn.Module):
    """What may stand between a resize and a convolution."""

    def __init__(self, what: str, c: int) -> None:
        super().__init__()
        self.what = what
        self.scale = nn.Parameter(torch.randn(1, c, 1, 1))
        self.norm = nn.BatchNorm2d(c)

    def forward(self, u: Tensor) -> Tensor:
        if self.what == "norm":
            return self.norm(u)
        if self.what == "relu_":
            return F.relu(u, inplace=True)
        if self.what == "scaled":
            return u * self.scale + 0.5
        if self.what == "noise":
            return u + 0.3 * torch.randn_like(u) if self.training else u
        if self.what == "noise_":
            if self.training:
                u.add_(torch.randn_like(u))
            return u
        if self.what == "written":
            if self.training:
                u[..., ::2] = 0.5
            return u
        if self.what == "view":
            if self.training:
                u[:, :1].detach().mul_(grid(u))
            return u
        if self.what == "grid":
            return u + grid(u)
        if self.what == "dropout":
            return F.dropout(u, 0.3, self.training)
        if self.what == "dropout2d":
            return F.dropout2d(u, 0.3, self.training)
        if self.what == "reflect":
            return F.pad(u, (1, 1, 1, 1), mode="reflect")
        if self.what == "zeros":
            return F.pad(u, (1, 1, 1, 1))
        if self.what == "roll":
            return u.roll(1, -1) if self.training else u
        return u


BETWEEN = (
    "", "", "", "norm", "relu_", "scaled", "noise", "noise_", "written", "view", "grid", "dropout",
    "dropout2d", "reflect", "zeros", "roll",
)  # fmt: skip


class Resized(nn.Module):
    """A resize by factor, as a module, a function or repeats, something between, and a convolution."""

    def __init__(self, r: random.Random, c: int, out: int) -> None:
        super().__init__()
        self.how = r.choice(["module", "function", "repeat", "size", "flag"])
        self.mode = (
            "nearest"
            if self.how == "repeat"
            else r.choice(["nearest", "nearest", "bilinear", "nearest-exact"])
        )
        self.factor = r.choice([2, 2, 3])
        self.up = nn.Upsample(scale_factor=self.factor, mode=self.mode)
        self.between = Between(r.choice(BETWEEN), c)
        mode = r.choice(["zeros", "zeros", "replicate", "reflect"])
        k = r.choice([1, 3, 3, 5])
        self.conv = nn.Conv2d(c, out, k, padding=k // 2, padding_mode=mode, bias=r.random() < 0.7)
        self.twice = out == c and r.random() < 0.2

    def forward(self, x: Tensor, flag: bool) -> Tensor:
        h, w = x.shape[-2:]
        if self.how == "module":
            u = self.up(x)
        elif self.how == "repeat":
            u = x.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, 2)
        elif self.how == "size":
            u = F.interpolate(x, (h * self.factor - h % 2, w * self.factor - w % 2), mode=self.mode)
        elif self.how == "flag" and flag:
            u = F.interpolate(x, scale_factor=self.factor, mode="bicubic")
        else:
            u = F.interpolate(x, scale_factor=self.factor, mode=self.mode)
        y = self.conv(self.between(u))
        return self.conv(y) if self.twice else y


class Guided(nn.Module):
    """Down, and up again to the size of what is beside it, concatenated: the block of a U-Net."""

    def __init__(self, r: random.Random, c: int, out: int) -> None:
        super().__init__()
        self.stride = r.choice([2, 2, 3])
        self.down = nn.Conv2d(c, c, 3, self.stride, r.choice([0, 1]))
        self.between = Between(r.choice(BETWEEN[:-3]), c)
        self.mode = r.choice(["nearest", "nearest", "bilinear"])
        self.conv = nn.Conv2d(2 * c, out, 3, padding=1)
        self.first = r.random() < 0.5

    def forward(self, x: Tensor, flag: bool) -> Tensor:
        u = self.between(F.interpolate(self.down(x), size=x.shape[-2:], mode=self.mode))
        return self.conv(torch.cat([u, x] if self.first else [x, u], dim=1))


class Shuffled(nn.Module):
    """A convolution, something between, and a shuffle."""

    def __init__(self, r: random.Random, c: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, 4 * out, 3, padding=1)
        self.norm = r.choice(
            [nn.Identity(), nn.BatchNorm2d(4 * out), nn.PReLU(4 * out), nn.ReLU(inplace=True)]
        )
        self.by_hand = r.random() < 0.3

    def forward(self, x: Tensor, flag: bool) -> Tensor:
        y = self.norm(self.conv(x))
        if not self.by_hand:
            return F.pixel_shuffle(y, 2)
        n, c, h, w = y.shape
        return y.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


class Transposed(nn.Module):
    """A transposed convolution, as a module or a function, with all that it may be given."""

    def __init__(self, r: random.Random, c: int, out: int) -> None:
        super().__init__()
        groups = 2 if c % 2 == 0 and out % 2 == 0 and r.random() < 0.3 else 1
        k, s, d = r.choice([1, 2, 3, 4, 5]), r.choice([2, 2, 3, 4]), r.choice([1, 1, 2])
        self.p = r.randrange(0, d * (k - 1) // 2 + 1)
        self.s, self.d, self.groups, self.op = s, d, groups, r.randrange(0, max(s, d))
        self.up = nn.ConvTranspose2d(c, out, k, s, self.p, self.op, groups, r.random() < 0.7, d)
        self.function = r.random() < 0.4
        if self.function:
            self.w = self.up.weight
            self.b = self.up.bias
            del self.up
        self.alpha = 1.0

    def forward(self, x: Tensor, flag: bool) -> Tensor:
        if not self.function:
            return self.up(x)
        y = F.conv_transpose2d(x, self.w, self.b, self.s, self.p, self.op, self.groups, self.d)
        return y * 2 if flag else y * self.alpha


BLOCKS = (Resized, Resized, Guided, Guided, Shuffled, Transposed)


class Network(nn.Module):
    """Two or three blocks in a row; one may be called twice, or write down what it saw."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        widths = [3, *(r.choice([2, 4]) for _ in range(r.choice([1, 2, 2])))]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            r.choice(BLOCKS)(r, a, b) for a, b in zip(widths, [*widths[1:], 4], strict=True)
        )
        self.named = r.random() < 0.3
        self.keeps = r.random() < 0.3
        self.seen: Any = None

    def forward(self, x: Tensor, flag: bool = False, *, gain: float | None = None) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, flag)
            if self.keeps:
                self.seen = x
        y = x if gain is None else x * gain
        return {"picture": y, "mean": y.mean((2, 3))} if self.named else y
