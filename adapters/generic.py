"""Models of no library that we know: generators, image-to-image networks, decoders. Inputs are guessed from
their first layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pixelize.adapters.adapter import Adapter
from pixelize.adapters.guessed_inputs import first_that_runs, noise

SIDES = {1: (1024, 256, 64), 2: (64, 32, 16, 128, 256), 3: (32, 16, 64)}
"""The sizes that are tried, by the number of axes: of signals, pictures and volumes."""
LATENT_NAMES = ("latent_dim", "latent_size", "latent_channels", "z_dim", "nz", "noise_dim", "dim_z")


def example_inputs(model: nn.Module) -> Any:
    """A small batch that the model takes: of pictures, signals or volumes, or of latent vectors, with or
    without axes of length 1.

    Raises ValueError if no guess runs.
    """
    guesses: list[Any] = []
    sizes = [getattr(model, name) for name in LATENT_NAMES if isinstance(getattr(model, name, None), int)]
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)), None)
    n = 2 if first is None or isinstance(first, nn.Linear) else len(first.kernel_size)
    if isinstance(first, nn.Linear):
        sizes.append(first.in_features)
    elif isinstance(first, _ConvTransposeNd):
        sizes.append(first.in_channels)
        guesses += [_noise_for(model, first, 8)] if _spatial(first) else []
    elif first is not None:
        guesses += [_noise_for(model, first, side) for side in SIDES[n]]
    for size in sizes:
        guesses += [noise(model, 2, size, *(1,) * n), noise(model, 2, size)]
    if isinstance(first, _ConvTransposeNd):
        guesses += [_noise_for(model, first, 8)]
    for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d):
        conv = next((m for m in model.modules() if isinstance(m, kind)), None)
        if conv is not None:
            guesses += [_noise_for(model, conv, side) for side in SIDES[len(conv.kernel_size)]]
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):  # which another reads, or of folded pictures
        guesses += [noise(model, 2, channels, side, side) for channels in (3, 1) for side in SIDES[2]]
    return first_that_runs(model, guesses)


def _noise_for(model: nn.Module, conv: _ConvNd, side: int) -> Tensor:
    return noise(model, 2, conv.in_channels, *(side,) * len(conv.kernel_size))


def _spatial(first: _ConvTransposeNd) -> bool:
    """Whether a first transposed convolution up-samples pictures rather than unfolds a vector (k4 s1 p0)."""
    return any(s != 1 for s in first.stride)


GENERIC = Adapter("generic", lambda model: True, example_inputs)
