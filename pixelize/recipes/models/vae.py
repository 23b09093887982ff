"""The variational auto-encoder of the paper's figure 7, and one of diffusers seen the same way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.recipes.models.arms import upsampler


class VAE(nn.Module):
    """Strided convolutions down to 4x4, a latent vector, and as many up-samplers up again.

    Channels double from ``width`` on the way down and halve on the way up; batch norm and ReLU after each;
    a last 3x3 convolution makes the picture, through tanh. (Were it made by the last up-sampler, a PixelDCL
    there would have to tell three pixels in four from the picture's own few channels at half its size: a grey
    one was seen to learn nothing.)

    Shapes: pictures ``(N, channels, size, size)`` in [-1, 1], ``size`` = 4 * 2^n; latents ``(N, latents)``.

    Raises ArgumentError for another size.
    """

    def __init__(self, size: int, channels: int, latents: int, arm: str = "dcl-k4", width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(doublings(size))]
        down: list[nn.Module] = []
        for before, after in zip([channels, *widths], widths, strict=False):
            down += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(16 * widths[-1], 2 * latents))
        self.project = nn.Sequential(
            nn.Linear(latents, 16 * widths[-1]),
            nn.Unflatten(1, (widths[-1], 4, 4)),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(inplace=True),
        )
        self.up = nn.Sequential(
            *up_blocks(arm, [*reversed(widths), width]),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.latent_shape = (latents,)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, ``(N, latents)`` each."""
        mean, log_variance = self.down(x).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents."""
        return self.up(self.project(z))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures through the latents with ``noise`` (standard normal), and the latents' mean and log
        variance.
        """
        mean, log_variance = self.encode(x)
        return self.decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


class DiffusersVAE(nn.Module):
    """An ``AutoencoderKL`` of diffusers with :class:`VAE`'s methods. ``size``: of the pictures."""

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise ArgumentError(
                f"a {type(model).__name__} has no encode and decode; --model must be an auto-encoder"
            )
        self.model = model
        with torch.no_grad():
            mean, _ = self.encode(torch.zeros(1, model.config.in_channels, size, size))
        self.latent_shape = tuple(mean.shape[1:])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z).sample

    forward = VAE.forward


def doublings(size: int) -> int:
    """n of size = 4 * 2^n. Raises ArgumentError if there is none."""
    n = (size // 4).bit_length() - 1
    if n < 1 or size != 4 << n:
        raise ArgumentError(f"--size {size}: this model needs 8, 16, 32, 64, ...")
    return n


def up_blocks(arm: str, widths: list[int]) -> list[nn.Module]:
    """Up-samplers from each width to the next, batch norm and ReLU after each."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [upsampler(arm, before, after), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return layers
