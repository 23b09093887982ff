"""DCGAN (Radford et al., arXiv 1511.06434) with a choice of up-samplers; every layer starts as torch starts
it.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from pixelize.recipes.models.vae import doublings, up_blocks


class Generator(nn.Module):
    """Latent vectors ``(N, latents)`` to pictures ``(N, channels, size, size)`` in [-1, 1], ``size`` = 4 *
    2^n.

    Raises ArgumentError for another size.
    """

    def __init__(self, size: int, channels: int, latents: int, arm: str = "dcl-k4", width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**i for i in reversed(range(doublings(size)))]
        self.project = nn.Sequential(
            nn.ConvTranspose2d(latents, widths[0], 4, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.up = nn.Sequential(*up_blocks(arm, [*widths, channels])[:-2], nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.up(self.project(z[:, :, None, None]))


class Critic(nn.Module):
    """Pictures ``(N, channels, size, size)`` to one logit each, ``(N,)``: the higher, the more real."""

    def __init__(self, size: int, channels: int, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(doublings(size))]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten()
