"""A model's pictures of the same inputs again, with something taken out on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.diagnosis.upsampling import Call, UpSampler, Watch
from pixelize.errors import ArgumentError
from pixelize.measure.any_axes import frequencies_nd
from pixelize.measure.notch import notch
from pixelize.running.batches import samples_of, selected
from pixelize.running.outputs import tensors
from pixelize.running.pictures import made_of, run

SAMPLES = 48
"""Samples of the data that are run, at most; the rest is not read."""
BATCH = 8
Change = Callable[[Call], Tensor | None]


def first_samples(data: Iterable[Any] | Tensor) -> list[Any]:
    """The first samples, in batches of a few."""
    taken: list[Any] = []
    count = 0
    for batch in [data] if isinstance(data, Tensor) else data:
        size = samples_of(batch)
        for n in range(0, size, BATCH):
            if count >= SAMPLES:
                return taken
            taken.append(selected(batch, slice(n, n + BATCH), size))
            count += samples_of(taken[-1])
    if not taken:
        raise ArgumentError("data is empty: a diagnosis needs inputs")
    return taken


def pictures_of_model(model: nn.Module, inputs: list[Any], see: Change | None) -> list[Tensor]:
    """What the model makes of each input, pictures (N, C, H, W), waveforms (N, C, L) or volumes (N, C, D, H,
    W), on the CPU; ``see`` is told each call of an up-sampler, and what it returns takes the place of the
    output.

    Raises ArgumentError if the output holds none of these.
    """
    pictures = []
    for x in inputs:
        watch = Watch(see or (lambda call: None))
        with watch.within(model):
            output = run(model, x)
        picture = made_of(output, watch.axes, watch.depths).picture
        if picture is None:
            raise ArgumentError(
                f"the output of this {type(model).__name__} holds no picture, waveform or volume"
            )
        pictures.append(picture.float().cpu())
    return pictures


def without_pattern_of(places: set[UpSampler]) -> Change:
    """The outputs of up-samplers without what lies around the multiples of 1/stride."""

    def change(call: Call) -> Tensor | None:
        if call.place not in places or min(call.output.shape[2:]) < 2:
            return None
        stride, y = call.place.stride, call.output
        period = math.lcm(*stride)
        depth = {
            f: 1.0
            for f in frequencies_nd((period,) * len(stride))
            if all(abs(v * s - round(v * s)) < 1e-9 for v, s in zip(f, stride, strict=True))
        }
        return notch(y.float(), period, depth=depth).to(y)

    return change


def picture_in(inputs: Any, axes: int) -> Tensor | None:
    """The largest picture, waveform or volume, of so many axes, in one element of data."""
    pictures = [t for t in tensors(inputs) if t.dim() == 2 + axes]
    return max(pictures, key=Tensor.numel, default=None)


def cleaned(inputs: Any, picture: Tensor, clean: Callable[[Tensor], Tensor]) -> Any:
    """One element of data with its ``picture`` cleaned."""
    return torch.utils._pytree.tree_map(lambda x: clean(x) if x is picture else x, inputs)
