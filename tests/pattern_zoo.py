"""Small random networks that make no pattern, and one fault put into them: what a diagnosis must tell."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.algebra.polyphase import axis_phases

KINDS = ("conv_transpose", "pixel_shuffle", "rearrange", "resize")
ACTIVATIONS = (F.relu, F.gelu, F.leaky_relu, torch.tanh)


def smooth(n: int, channels: int, size: int, seed: int) -> Tensor:
    """Pictures (n, channels, size, size) with a falling spectrum, of variance 1."""
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    y = torch.fft.irfft2(torch.fft.rfft2(x) / (0.05 + down**2 + across**2).sqrt(), s=(size, size))
    return y / y.std()


class Shuffle(nn.Module):
    """A convolution to s * s phases of linear interpolation, each after a mixing of channels."""

    def __init__(self, channels: int, s: int, how: str) -> None:
        super().__init__()
        self.s, self.how = s, how
        self.conv = nn.Conv2d(channels, channels * s * s, 3, padding=1)
        places = [(a - (s - 1) / 2) / s for a in range(s)]
        rows = torch.tensor([[max(0.0, -t), 1 - abs(t), max(0.0, t)] for t in places])
        mix = torch.randn(channels, channels) / channels**0.5
        weight = torch.einsum("oi,ay,bx->oabiyx", mix, rows, rows)
        self.conv.weight.data = weight.reshape(-1, channels, 3, 3)
        nn.init.zeros_(self.conv.bias)

    def sub_kernels(self) -> Tensor:
        """(C_out, s, s, ...), a view of the weight."""
        return self.conv.weight.data.view(-1, self.s, self.s, *self.conv.weight.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "pixel_shuffle":
            return F.pixel_shuffle(y, self.s)
        n, c, h, w = y.shape
        split = y.view(n, c // self.s**2, self.s, self.s, h, w)
        return split.permute(0, 1, 4, 2, 5, 3).reshape(n, c // self.s**2, h * self.s, w * self.s)


def up_sampler(kind: str, channels: int, s: int) -> nn.Module:
    if kind == "resize":
        return nn.Upsample(scale_factor=s, mode="bilinear")
    if kind != "conv_transpose":
        return Shuffle(channels, s, kind)
    line = torch.tensor([1.0, 3, 3, 1]) / 4 if s == 2 else torch.tensor([1.0, 2, 3, 2, 1]) / 3
    layer = nn.ConvTranspose2d(channels, channels, len(line), s, 1)
    mix = torch.randn(channels, channels) / channels**0.5
    layer.weight.data = torch.einsum("io,y,x->ioyx", mix, line, line)
    return layer


def phase_taps(layer: nn.ConvTranspose2d) -> list[tuple[tuple[int, int], list[tuple[int, int]]]]:
    axes = [
        axis_phases(k, s, p, 1)
        for k, s, p in zip(layer.kernel_size, layer.stride, layer.padding, strict=True)
    ]
    return [
        ((a, b), [(i, j) for i in down.taps for j in across.taps])
        for a, down in enumerate(axes[0])
        for b, across in enumerate(axes[1])
    ]


def make_uneven(module: nn.Module, seed: int) -> None:
    """Every phase of every channel gets a gain of its own, from 1 to 1.5."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, Shuffle):
        kernels = module.sub_kernels()
        kernels *= 1 + torch.rand(*kernels.shape[:3], 1, 1, 1, generator=generator) / 2
        return
    for _, taps in phase_taps(module):
        gain = 1 + torch.rand(module.out_channels, generator=generator) / 2
        for i, j in taps:
            module.weight.data[:, :, i, j] *= gain


def swap_phases(module: nn.Module, which: int) -> None:
    """Phases reversed down, across, both ways, or rows and columns exchanged."""
    s = module.s if isinstance(module, Shuffle) else module.stride[0]
    moves = (
        lambda a, b: (s - 1 - a, b),
        lambda a, b: (a, s - 1 - b),
        lambda a, b: (s - 1 - a, s - 1 - b),
        lambda a, b: (b, a),
    )
    move = moves[which % 4]
    if isinstance(module, Shuffle):
        kernels = module.sub_kernels()
        old = kernels.clone()
        for a in range(s):
            for b in range(s):
                kernels[:, a, b] = old[(slice(None), *move(a, b))]
        return
    taps, old = dict(phase_taps(module)), module.weight.data.clone()
    for phase, mine in taps.items():
        for (i, j), (k, m) in zip(mine, taps[move(*phase)], strict=True):
            module.weight.data[:, :, i, j] = old[:, :, k, m]


class Network(nn.Module):
    """A stem, up-samplers with residual convolutions behind them, a head."""

    def __init__(self, kinds: list[str], strides: list[int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.ups = nn.ModuleList(up_sampler(k, 8, s) for k, s in zip(kinds, strides, strict=True))
        self.mids = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in kinds)
        self.head = nn.Conv2d(8, 3, 3, padding=1)
        self.act = ACTIVATIONS[seed % len(ACTIVATIONS)]
        self.added: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.stem(x))
        for up, mid in zip(self.ups, self.mids, strict=True):
            h = up(h)
            h = h + 0.3 * self.act(mid(h))
        y = self.head(h)
        return y if self.added is None else y + self.added[: y.shape[-2], : y.shape[-1]]


class ImageToImage(nn.Module):
    """Smaller, through a network, and added to what came in."""

    def __init__(self, network: Network, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.avg_pool2d(x, self.scale)) + 0.7 * x[:, :3]


class Tiled(nn.Module):
    """Runs a network on tiles of its input, side by side and without overlap."""

    def __init__(self, network: Network, tile: int) -> None:
        super().__init__()
        self.network, self.tile = network, tile

    def forward(self, x: Tensor) -> Tensor:
        rows = [x[..., i : i + self.tile, :] for i in range(0, x.shape[-2], self.tile)]
        tiles = [[r[..., j : j + self.tile] for j in range(0, x.shape[-1], self.tile)] for r in rows]
        return torch.cat([torch.cat([self.network(t) for t in row], -1) for row in tiles], -2)


@dataclass
class Case:
    model: nn.Module
    data: Tensor
    layer: str | None = None
    """The up-sampler that was spoilt."""


def alternating(size: int, across: bool = True) -> Tensor:
    return (-1.0) ** (torch.arange(size)[:, None] + across * torch.arange(size))


def make(fault: str, seed: int) -> Case | None:
    """A network with one fault: clean, uneven, swapped, inputs, tiles, elsewhere. None where the draw has no
    layer for it."""
    draw = random.Random(seed)
    count = draw.choice([1, 2, 2])
    kinds = [draw.choice(KINDS) for _ in range(count)]
    strides = [draw.choice([2, 2, 3]) for _ in range(count)]
    scale = strides[0] * (strides[1] if count > 1 else 1)
    model: nn.Module = Network(kinds, strides, seed)
    data = smooth(16, 4, max(12, -(-60 // scale)), seed)
    if fault in ("uneven", "swapped"):
        able = [
            i
            for i, (kind, s) in enumerate(zip(kinds, strides, strict=True))
            if kind != "resize" and not (fault == "swapped" and kind == "conv_transpose" and s == 3)
        ]
        if not able:
            return None
        i = draw.choice(able)
        make_uneven(model.ups[i], seed) if fault == "uneven" else swap_phases(model.ups[i], seed)
        return Case(model.eval(), data, f"ups.{i}")
    if fault == "inputs":
        size = 64 // scale * scale
        pattern = 0.3 * torch.randn(4, 1, 1) * alternating(size)
        return Case(ImageToImage(model, scale).eval(), smooth(16, 4, size, seed) + pattern)
    if fault == "tiles":
        tile = max(6, -(-18 // scale))
        return Case(Tiled(model, tile).eval(), smooth(16, 4, tile * max(4, -(-64 // (tile * scale))), seed))
    if fault == "elsewhere":
        model.added = 0.1 * alternating(256, across=bool(seed % 2))
    return Case(model.eval(), data)
