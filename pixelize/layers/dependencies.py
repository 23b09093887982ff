"""What all the layers share: the direct relations between the phases of an output, in any number of axes.

A layer of Gao et al. splits an output into its phases, adds to each what the schedule's stages make of the
phases before it, and interleaves them again. What the phases start from, the base, is the layer's own: a
transposed convolution (:mod:`pixelize.layers.functional`) or a convolution
(:mod:`pixelize.layers.functional_conv`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pixelize.algebra.polyphase import CONVOLUTIONS, Phase, Size, last_axes, padded
from pixelize.algebra.schedule import Schedule, Stage, build_schedule
from pixelize.errors import ArgumentError
from pixelize.layers.interleave import CHANNELS_LAST, add_up, interleave, is_channels_last
from pixelize.rewrites.state.capturing import capturing

T = TypeVar("T")


class DependencyDesign(NamedTuple):
    """How the phases depend on each other: the arguments ``dependency_groups``, ``dependency_kernel_size``
    and ``schedule`` of the functional forms.
    """

    groups: int
    kernel_size: int | Sequence[int]
    schedule: str


def dependency(
    stage: Stage, kernel: Tensor, phases: dict[Phase, Tensor], channels: int, groups: int
) -> dict[Phase, Tensor]:
    """What a stage's sources contribute to each of its targets: the direct relations between adjacent pixels.

    ``phases``: the maps made so far, (..., C, *grid) each; outside their grid they count as zero.
    """
    parts = _dependency(stage, kernel, phases, channels, groups)
    return {target: add_up(terms) for target, terms in parts.items()}


def make_phases(
    maps: dict[Phase, list[Tensor]], plan: Schedule, kernels: Sequence[Tensor], channels: int, groups: int
) -> None:
    """Adds to ``maps``, for each phase the maps that it is the sum of, what each stage contributes.

    Maps that later stages read are added up; the others are left to the interleaving.
    """
    for stage, kernel in zip(plan.stages, kernels, strict=True):
        sources = {}
        for source in stage.sources:
            sources[source] = _source(maps[source], len(source))
            maps[source] = [sources[source]]
        for target, parts in _dependency(stage, kernel, sources, channels, groups).items():
            maps[target] = [*maps.get(target, []), *parts]


def completed(
    maps: dict[Phase, list[Tensor]],
    base: Tensor,
    kernels: Sequence[Tensor],
    bias: Tensor | None,
    period: Size,
    size: Size,
    first: Phase,
    design: DependencyDesign,
) -> Tensor:
    """The output (N, C, *size): ``maps``, what the phases are of the input, completed by the stages of the
    schedule, interleaved, and the bias added. Channels and memory format are those of ``base``.

    Raises ArgumentError for a schedule that there is not.
    """
    n = len(period)
    window = sizes(design.kernel_size, n, "dependency_kernel_size")
    plan = schedule_of(design.schedule, period, window, first)
    make_phases(maps, plan, kernels, base.shape[-n - 1], design.groups)
    return interleave(maps, period, size=size, bias=bias, channels_last=is_channels_last(base, n))


def _dependency(
    stage: Stage, kernel: Tensor, phases: dict[Phase, Tensor], channels: int, groups: int
) -> dict[Phase, list[Tensor]]:
    # The contributions as lists of maps yet to be added up. Dense kernels: all sources side by side, one
    # convolution for all targets. The others: a convolution for each window, since their channels would have
    # to be shuffled otherwise.
    n = len(stage.targets[0])
    convolve = CONVOLUTIONS[n]
    if groups == 1 and not (stage.shared or stage.compact):
        half, beside = _dense_window(
            stage.terms[0].size, *(t.start for t in stage.terms[:: len(stage.targets)])
        )
        sources = [phases[source] for source in stage.sources]
        if beside:
            sources = [padded(x, *around) for x, around in zip(sources, beside, strict=True)]
        x = sources[0] if len(sources) == 1 else torch.cat(sources, -n - 1)
        y = convolve(x, kernel, None, 1, half)
        return {target: [part] for target, part in zip(stage.targets, y.split(channels, -n - 1), strict=True)}
    parts: dict[Phase, list[Tensor]] = {target: [] for target in stage.targets}
    for term, taps in zip(stage.terms, stage.taken_apart(kernel, groups), strict=True):
        padding, crop = _window(term.start, term.size)
        # contiguous: torch's own backward of small convolutions fails for the strides that indexing gives a
        # channels_last kernel
        y = convolve(phases[term.source], taps.contiguous(), None, 1, padding, 1, groups)
        parts[term.target].append(cropped(y, crop))
    return parts


def _source(terms: Sequence[Tensor], n: int) -> Tensor:
    # several convolutions read it, each of which would copy a strided view
    total = add_up(terms)
    last = is_channels_last(total, n)
    return total.contiguous(memory_format=CHANNELS_LAST[n] if last else torch.contiguous_format)


def constant(function: Callable[..., T]) -> Callable[..., T]:
    """A function of a layer's geometry alone, worked out once for each.

    A compiler does so anyway, looks through a cache, and warns that it does.
    """
    kept = lru_cache(maxsize=512)(function)

    @wraps(function)
    def call(*arguments: Any) -> T:
        return function(*arguments) if capturing() else kept(*arguments)

    return call


schedule_of = constant(build_schedule)


class Crop(NamedTuple):
    """What is to be dropped at both ends of each axis, as an index; or, where zeros are to be added instead,
    as the argument of ``padded``.
    """

    taken: tuple[Any, ...] | None = None
    zeros: tuple[list[int], list[int]] | None = None


def shared_crop(lead: Sequence[int], tail: Sequence[int]) -> tuple[Size, Crop]:
    """A crop of ``lead`` positions before and ``tail`` after, negative ones being zeros to be added, as the
    part that both sides of an axis share, which a convolution does by padding less, and the rest.
    """
    both = tuple(max(0, min(a, b)) for a, b in zip(lead, tail, strict=True))
    before, after = ([a - b for a, b in zip(side, both, strict=True)] for side in (lead, tail))
    if min(*before, *after) < 0:
        return both, Crop(zeros=([-a for a in before], [-a for a in after]))
    if any(before) or any(after):
        return both, Crop(last_axes(slice(a, -b or None) for a, b in zip(before, after, strict=True)))
    return both, Crop()


def cropped(y: Tensor, crop: Crop) -> Tensor:
    """``y`` without what is to be dropped."""
    if crop.taken is not None:
        return y[crop.taken]
    return y if crop.zeros is None else padded(y, *crop.zeros)


@constant
def _window(start: Size, size: Size) -> tuple[Size, Crop]:
    # The padding of a convolution that reads a window from ``start`` on, and what is to be dropped of it: the
    # full convolution reads from 1 - size on.
    lead = [a + k - 1 for a, k in zip(start, size, strict=True)]
    both, crop = shared_crop(lead, [-a for a in start])
    return tuple(k - 1 - c for k, c in zip(size, both, strict=True)), crop


@constant
def _dense_window(size: Size, *starts: Size) -> tuple[Size, list[tuple[Size, Size]]]:
    # The same for sources side by side: the padding if all are read alike, from as far before as after; else
    # what each has to be padded with.
    half = tuple(k // 2 for k in size)
    if all(k % 2 for k in size) and all(tuple(-a for a in start) == half for start in starts):
        return half, []
    around = [(tuple(-a for a in start), tuple(k - 1 + a for a, k in zip(start, size, strict=True)))
              for start in starts]  # fmt: skip
    return (0,) * len(size), around


def sizes(value: int | Sequence[int], n: int, name: str) -> Size:
    """One number for each of ``n`` axes. Raises ArgumentError."""
    if isinstance(value, int):
        return (value,) * n
    along = tuple(value)
    if len(along) != n:
        raise ArgumentError(f"{name} is {tuple(value)}; a weight with {n} axes needs {n} numbers, or one")
    return along
