"""Pictures that a generative model samples: how strong their pattern is, how natural their spectrum, and a
sheet of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from pixelize.measure.checkerboard import checkerboard, frequency_name
from pixelize.measure.spectrum import power_spectrum
from pixelize.recipes.training.order import generator
from pixelize.recipes.training.run_state import Metrics

BATCH = 64


def sampled(
    model: nn.Module, shape: tuple[int, ...], count: int, make: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``count`` pictures of always the same standard normal latents (count, *shape), on the CPU. ``make``
    takes latents to pictures: by default the model itself.
    """
    make = make or model
    latents = torch.randn(count, *shape, generator=generator(0, 8))
    device = next(model.parameters()).device
    return torch.cat([make(part.to(device)).float().cpu() for part in latents.split(BATCH)])


def pattern(pictures: Tensor, prefix: str = "") -> Metrics:
    """The worst of the global and of the windowed figures of :func:`pixelize.checkerboard`, and the global
    one of each frequency: dB.
    """
    measured = checkerboard(pictures)
    each = {f"{prefix}{frequency_name(f)} dB": v for f, v in measured["global"].items()}
    return {**each, f"{prefix}windowed dB": max(measured["windowed"].values())}


def spectral_distance(pictures: Tensor, real: Tensor) -> float:
    """Root mean square difference, in dB, of the radial power spectra of two sets of pictures of one size."""
    ours, theirs = (power_spectrum(p).radial_power for p in (pictures, real))
    return float((ours - theirs).square().mean().sqrt())


def save_sheet(pictures: Tensor, path: Path) -> Path:
    """Writes pictures in [-1, 1] side by side, eight to a row. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(pictures.float() / 2 + 0.5, path, nrow=8)
    return path
