"""Networks of four kinds, trained for one to four minutes on drawn scenes, to repair.

- shuffle: super-resolution x2, two convolutions and PixelShuffle, a convolution after it;
- nearest: a picture through a quarter of its size and back, nearest-neighbour resizes and convolutions;
- logits: a U-Net (k3 s2 transposed convolutions, uneven overlap), logits of six classes;
- film: three frames in one output, from three small frames, a transposed convolution k4 s2 p1 last.

Drawn scenes 0 to 1,199 train; what is fitted to and what is measured on come after them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import repair_trained
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.recipes.data.scenes import SCENE_CLASSES
from pixelize.recipes.models.unet import UNet

NAMES = ("shuffle", "nearest", "logits", "film")
_TRAINED_ON = 1200
_SIDE = 64


def shuffle() -> nn.Module:
    """(N, 3, h, w) to (N, 3, 2h, 2w)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(16, 3, 3, padding=1),
    )  # fmt: skip


def nearest() -> nn.Module:
    """(N, 3, h, w) to the same, through a quarter of it."""

    def up(i: int, o: int) -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(i, o, 3, padding=1)]

    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
        *up(48, 24), nn.ReLU(), *up(24, 3),
    )  # fmt: skip


def logits() -> nn.Module:
    """(N, 3, h, w) to (N, 6, h, w)."""
    return UNet(classes=len(SCENE_CLASSES), arm="dcl-k3", width=8)


class Film(nn.Module):
    """(N, 3, 3, h, w), frames second, to (N, 3, 3, 2h, 2w)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(9, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        )
        self.up = nn.ConvTranspose2d(32, 9, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.body(x.flatten(1, 2))).unflatten(1, (3, 3))


def scenes(name: str, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and truth for a network, from drawn scenes."""
    x, classes = repair_trained.scenes(count, first, _SIDE if name != "film" else _SIDE + 8)
    if name == "logits":
        return x, classes
    if name == "film":  # the camera moves
        x = torch.stack([x[..., n : n + _SIDE, 2 * n : 2 * n + _SIDE] for n in (0, 2, 4)], 1)
        small = F.interpolate(x.flatten(0, 1), scale_factor=0.5, mode="bilinear", antialias=True)
        return small.unflatten(0, (-1, 3)), x
    if name == "shuffle":
        return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), x
    return x, x


def trained(name: str, folder: Path) -> nn.Module:
    """A network after some CPU seconds of training, kept in ``folder``."""
    seconds = 240.0 if name == "logits" else 60.0
    torch.manual_seed(0)
    model = {"shuffle": shuffle, "nearest": nearest, "logits": logits, "film": Film}[name]()
    file = folder / f"{name}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    inputs, truth = scenes(name, 0, _TRAINED_ON)
    loss = repair_trained.loss
    if name == "logits":  # two thirds of the pixels are ground: unweighted, a minute teaches to answer that
        loss = partial(F.cross_entropy, weight=torch.tensor([1.0, *[6.0] * (len(SCENE_CLASSES) - 1)]))
    repair_trained.train(model, inputs, truth, seconds, loss)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    return model.eval()
