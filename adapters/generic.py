"""Models of no library that we know: generators, image-to-image networks, decoders. Inputs are guessed from
their first layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixelize.adapters.adapter import Adapter
from pixelize.adapters.guessed_inputs import first_that_runs, noise

SIDES = (64, 32, 16, 128, 256)
LATENT_NAMES = ("latent_dim", "latent_size", "latent_channels", "z_dim", "nz", "noise_dim", "dim_z")


def example_inputs(model: nn.Module) -> Any:
    """A batch of one that the model takes: a picture, or a latent vector, with or without two axes of length
    1.

    Raises ValueError if no guess runs.
    """
    guesses: list[Any] = []
    sizes = [getattr(model, name) for name in LATENT_NAMES if isinstance(getattr(model, name, None), int)]
    first = next(
        (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)), None
    )
    if isinstance(first, nn.Linear):
        sizes.append(first.in_features)
    elif isinstance(first, nn.ConvTranspose2d):
        sizes.append(first.in_channels)
        guesses += [noise(model, 2, first.in_channels, 8, 8)] if _spatial(first) else []
    elif isinstance(first, nn.Conv2d):
        guesses += [noise(model, 2, first.in_channels, side, side) for side in SIDES]
    for size in sizes:
        guesses += [noise(model, 2, size, 1, 1), noise(model, 2, size)]
    if isinstance(first, nn.ConvTranspose2d):
        guesses += [noise(model, 2, first.in_channels, 8, 8)]
    pictures = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if pictures is not None:
        guesses += [noise(model, 2, pictures.in_channels, side, side) for side in SIDES]
    return first_that_runs(model, guesses)


def _spatial(first: nn.ConvTranspose2d) -> bool:
    """Whether a first transposed convolution up-samples pictures rather than unfolds a vector (k4 s1 p0)."""
    return tuple(first.stride) != (1, 1)


GENERIC = Adapter("generic", lambda model: True, example_inputs)
