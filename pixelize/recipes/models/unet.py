"""The U-Net of *Pixel Deconvolutional Networks*, after the authors' code: the up-sampler is the only thing
that varies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelize.recipes.models.arms import upsampler


class UNet(nn.Module):
    """Four blocks down and four up, every convolution 3x3 with batch norm and ReLU.

    Channels double from ``width`` on the way down; the bottom doubles and halves; a block up is an up-sampler
    with as many channels out as in, norm and ReLU, the skip concatenated, a convolution, and one that halves
    (the last goes to the classes).

    Shapes: ``(N, 3, H, W)`` to ``(N, classes, H, W)``, H and W multiples of 16.
    """

    def __init__(self, classes: int, arm: str = "dcl-k4", width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            nn.Sequential(block(before, after), block(after, after))
            for before, after in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = nn.Sequential(block(widths[3], 2 * widths[3]), block(2 * widths[3], widths[3]))
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for channels in reversed(widths):
            self.up.append(
                nn.Sequential(
                    upsampler(arm, channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
                )
            )
            last = nn.Conv2d(channels, classes, 3, padding=1)
            halved = last if channels == width else block(channels, channels // 2)
            self.merge.append(nn.Sequential(block(2 * channels, channels), halved))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return x


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
