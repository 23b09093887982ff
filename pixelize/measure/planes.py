"""Pictures in, planes out: the one way the measures read images, whatever holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.rewrites.state.precision import float64

Images = Tensor | np.ndarray | Iterable[Tensor | np.ndarray]
"""One batch ``(N, C, H, W)``, one picture ``(C, H, W)`` or ``(H, W)``, or an iterable of any of these."""

_CHUNK = 2**21  # elements converted to float64 at a time: 16 MiB


def image_planes(images: Images, minimum: tuple[int, int]) -> Iterator[Tensor]:
    """Yield every channel of every picture as planes ``(n, H, W)`` in float64, some at a time.

    Planes stay on the images' device (Apple's has no float64: there they come to the CPU). Only a few
    MiB are converted at a time, so memory does not grow with the batch or with the number of batches.

    Raises:
        ArgumentError: not images, no images, smaller than ``minimum`` (height, width), NaN or inf.
    """
    empty = True
    for batch in picture_batches(images):
        for planes in planes_of(batch, minimum):
            empty = False
            yield planes
    if empty:
        raise ArgumentError("There are no images to measure: the iterable or the batch is empty.")


def one_batch(images: Tensor | np.ndarray, minimum: tuple[int, int]) -> Tensor:
    """One batch as float64 ``(N, C, H, W)``, checked as :func:`image_planes` checks.

    Raises:
        ArgumentError: as :func:`image_planes`.
    """
    batch = _as_batch(images)
    if batch.numel() == 0:
        raise ArgumentError("There are no images to measure: the batch is empty.")
    return torch.cat(list(planes_of(batch, minimum))).reshape(batch.shape)


def picture_batches(images: Images) -> Iterator[Tensor]:
    """Whatever holds images as batches ``(N, C, H, W)``. Raises ArgumentError for what holds none."""
    if isinstance(images, Tensor | np.ndarray):
        yield _as_batch(images)
        return
    if isinstance(images, str | bytes | dict) or not isinstance(images, Iterable):
        raise ArgumentError(
            f"images is a {type(images).__name__}; pass a tensor or array of shape (N, C, H, W), (C, H, W) "
            "or (H, W), or an iterable of them."
        )
    for batch in images:
        yield _as_batch(batch)


def _as_batch(batch: object) -> Tensor:
    """``(H, W)`` and ``(C, H, W)`` become ``(N, C, H, W)``; the dtype is left as it is."""
    if isinstance(batch, np.ndarray):
        if batch.dtype.kind not in "buif":
            raise ArgumentError(f"images hold {batch.dtype} values; real numbers are needed.")
        batch = torch.from_numpy(np.ascontiguousarray(batch, dtype=batch.dtype.newbyteorder("=")))
    if not isinstance(batch, Tensor):
        raise ArgumentError(
            f"an iterable of images yielded a {type(batch).__name__}; each item must be a tensor or array. "
            "From a loader of (images, labels) pairs pass (batch[0] for batch in loader)."
        )
    if batch.is_complex():
        raise ArgumentError(f"images hold {batch.dtype} values; real numbers are needed.")
    if not 2 <= batch.dim() <= 4:
        raise ArgumentError(
            f"images have shape {tuple(batch.shape)}; pass (N, C, H, W), (C, H, W) or (H, W)."
        )
    return batch.detach().reshape((1,) * (4 - batch.dim()) + tuple(batch.shape))


def planes_of(batch: Tensor, minimum: tuple[int, int]) -> Iterator[Tensor]:
    """:func:`image_planes` of one batch ``(N, C, H, W)``."""
    height, width = batch.shape[-2:]
    if batch.numel() and (height < minimum[0] or width < minimum[1]):
        hint = ""
        if width <= 4:
            hint = (
                " They look channels-last: move the channels first, array.transpose(2, 0, 1) for one picture."
            )
        raise ArgumentError(
            f"images of {height}x{width} pixels are too small: at least {minimum[0]}x{minimum[1]} "
            f"(height x width) are needed.{hint}"
        )
    planes = batch.flatten(0, 1)
    for chunk in planes.split(max(1, _CHUNK // max(1, height * width))):
        chunk = float64(chunk)
        if chunk.numel() == 0:
            continue
        bad = int((~torch.isfinite(chunk)).sum())
        if bad:
            raise ArgumentError(
                f"images hold NaN or inf ({bad} values in a block of shape {tuple(chunk.shape)}); find out "
                "which input or layer makes them, or leave those pictures out."
            )
        yield chunk
