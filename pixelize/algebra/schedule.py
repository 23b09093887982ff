"""Which phase is made when, and from which others: the dependency schedules of pixel deconvolution.

Gao et al., *Pixel Deconvolutional Networks*: eq. 2 and 3 (``"sequential"``) and figure 4 (``"paired"`` and,
with one shared masked kernel for the last two maps, ``"masked"``); their own code makes the phases of a
volume in the order that ``"paired"`` has. A schedule is plain data; the layers, the fits and ``fold`` read
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from torch import Tensor

from pixelize.algebra.polyphase import Phase, Size, all_phases, last_axes, ungrouped
from pixelize.errors import ArgumentError

Window = tuple[Phase, Size, Tensor]
SCHEDULES: tuple[str, ...] = ("paired", "sequential", "masked", "near")


@dataclass(frozen=True)
class Term:
    """One window of a stage: ``target`` reads ``source`` at the low-resolution ``start .. start + size - 1``
    of each axis.

    ``taps`` index the axes of the stage's kernel, in the window's order: as many of them along each axis as
    the window has, or, in a compact kernel of one axis, as many as the window has in all.
    """

    target: Phase
    source: Phase
    start: Size
    size: Size
    taps: tuple[tuple[int, ...], ...]

    def window(self, kernel: Tensor) -> Tensor:
        """This window's part of ``kernel`` (..., *axes), the stage's or one pair's of a dense stage: (...,
        *size).
        """
        part = kernel[last_axes(map(_slice, self.taps))]
        return part if len(self.taps) == len(self.size) else part.unflatten(-1, self.size)


@dataclass(frozen=True)
class Feature:
    """One pixel that a target reads: ``source`` at a low-resolution ``offset``, weighted by the kernel's
    ``tap`` (an index for each of the kernel's axes).
    """

    source: Phase
    offset: Size
    tap: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """Phases made in one step, each the input's part plus a convolution of the sources.

    A dense stage has one kernel (n_targets * C, n_sources * C / groups, *k). A shared one (schedule
    ``"masked"``) has a single kernel (C, C / groups, *k), laid over the full-resolution grid on which only
    the sources are non-zero. A compact one (schedule ``"near"``) has a single target and (C, C / groups,
    number of pixels read).
    """

    targets: tuple[Phase, ...]
    sources: tuple[Phase, ...]
    terms: tuple[Term, ...]
    shared: bool = False
    compact: bool = False

    def kernel_shape(self, channels: int, groups: int, size: Sequence[int]) -> tuple[int, ...]:
        """The shape of this stage's dependency kernel for ``channels`` feature maps."""
        if self.compact:
            return channels, channels // groups, sum(prod(term.size) for term in self.terms)
        if self.shared:
            return channels, channels // groups, *size
        return len(self.targets) * channels, len(self.sources) * (channels // groups), *size

    def features(self, target: Phase) -> tuple[Feature, ...]:
        """What ``target`` reads. In a shared stage the lists of all targets are in the same order of taps."""
        features = []
        for term in self.terms:
            if term.target == target:
                taps = product(*term.taps)
                for step, tap in zip(product(*map(range, term.size)), taps, strict=True):
                    offset = tuple(a + b for a, b in zip(term.start, step, strict=True))
                    features.append(Feature(term.source, offset, tap))
        return tuple(sorted(features, key=lambda f: f.tap)) if self.shared else tuple(features)

    def _pairs(self, kernel: Tensor, groups: int) -> Tensor:
        # the kernel as a view (groups, targets, C/groups, sources, C/groups, *axes), with one target and
        # one source where they share it
        dense = not (self.shared or self.compact)
        targets, sources = (len(self.targets), len(self.sources)) if dense else (1, 1)
        width = kernel.shape[1] // sources
        return kernel.unflatten(0, (groups, targets, width)).unflatten(3, (sources, width))

    def _of_term(self, term: Term) -> tuple[int, int]:
        if self.shared or self.compact:
            return 0, 0
        return self.targets.index(term.target), self.sources.index(term.source)

    def assemble(self, solutions: dict[Phase, Tensor], kernel: Tensor, groups: int) -> None:
        """Writes least-squares solutions into a dependency kernel of this stage, in place.

        ``solutions``: for each target (groups, n_features, C/groups in, C/groups out); a shared stage takes
            the first target's.
        """
        view = self._pairs(kernel, groups)
        for i, target in enumerate(self.targets[:1] if self.shared else self.targets):
            for j, feature in enumerate(self.features(target)):
                source = 0 if view.shape[3] == 1 else self.sources.index(feature.source)
                place = view[:, i, :, source][last_axes(feature.tap)]  # groups, out, in
                place.copy_(solutions[target][:, j].transpose(-1, -2))

    def windows(self, kernel: Tensor, channels: int, groups: int) -> dict[Phase, list[Window]]:
        """The stage's kernel taken apart: for each target, (source, start, dense kernel (C, C, *size)) of
        each window it reads.
        """
        windows: dict[Phase, list[Window]] = {target: [] for target in self.targets}
        for term, part in zip(self.terms, self.taken_apart(kernel, groups), strict=True):
            windows[term.target].append((term.source, term.start, ungrouped(part, groups)))
        return windows

    def taken_apart(self, kernel: Tensor, groups: int) -> list[Tensor]:
        """For each term its part of the kernel, a grouped convolution's: (C, C / groups, *size)."""
        if self.shared or self.compact:
            return [term.window(kernel) for term in self.terms]
        pairs = self._pairs(kernel, groups).permute(1, 3, 0, 2, 4, *range(5, kernel.dim() + 3)).flatten(2, 3)
        # contiguous at once: a kernel for each pair is read by a convolution of its own
        parts = pairs.flatten(0, 1).contiguous().unbind()
        at = dict(zip(product(self.targets, self.sources), parts, strict=True))
        return [at[term.target, term.source] for term in self.terms]


def _slice(taps: tuple[int, ...]) -> slice:
    # evenly spaced indices as a slice: indexing by a list is slow, and its gradient more so
    return slice(taps[0], taps[-1] + 1, taps[1] - taps[0] if len(taps) > 1 else 1)


@dataclass(frozen=True)
class Schedule:
    """The stages after the first phase, ``anchor``, which sees only the input."""

    name: str
    stride: Size
    anchor: Phase
    stages: tuple[Stage, ...]


def build_schedule(
    name: str, stride: Sequence[int], kernel_size: Sequence[int], anchor: Phase | None = None
) -> Schedule:
    """The schedule of that name for a stride, dependency kernels of ``kernel_size`` and a first phase at
    ``anchor``.

    - ``"sequential"``: one phase at a time, each from all before it (eq. 2, 3).
    - ``"paired"``: the phase half a period away in all directions from the first, then all that remain from
      those before, the phases of one step in one convolution. In two dimensions there are two dependent
      steps: for stride 2 this is figure 4 of the paper. In three, the phases displaced from the first in all
      but one direction come before those displaced in one alone: three steps, as in the authors' code. In one
      dimension there is one step for stride 2, two for more.
    - ``"masked"``: as ``"paired"`` for stride 2 in two dimensions, with one kernel shared by the last two
      maps and masked to the taps that fall on the first two: the four edge neighbours of a 3x3 kernel.
    - ``"near"``: as ``"paired"``, but each phase reads only pixels beside it, and ``kernel_size`` counts for
      nothing. Of the phases before it those that are displaced from it in the fewest directions, and of their
      pixels the nearest one to either side. For stride 2 these are its edge neighbours (2 in one dimension, 4
      in two, 2 or 6 in three), and for the first phase after the anchor the corners around it.

    Raises ArgumentError for an unknown name, or for ``"masked"`` with other than two strides of 2 or an even
    kernel.
    """
    if name not in SCHEDULES:
        raise ArgumentError(f"schedule is {name!r}; choose one of {', '.join(map(repr, SCHEDULES))}")
    stride, size = tuple(stride), tuple(kernel_size)
    anchor = anchor or (0,) * len(stride)
    if name == "masked" and (stride != (2, 2) or any(k % 2 == 0 for k in size) or size == (1, 1)):
        raise ArgumentError(
            "schedule 'masked' needs stride 2 in two dimensions and odd dependency kernels, 3 or more, not "
            f"stride {stride} and {size}; use schedule='paired'"
        )
    steps = [[_shifted(phase, anchor, stride) for phase in step] for step in _steps(stride)]
    if name == "sequential":
        steps = [[phase] for step in steps for phase in step]
    made, stages = steps[0], []
    for step in steps[1:]:
        if name == "near":
            stages += [_near(phase, made, stride) for phase in step]
        elif name == "masked" and stages:
            stages.append(_masked(step, made, size))
        else:
            stages.append(_dense(step, made, size))
        made = made + step
    return Schedule(name, stride, anchor, tuple(stages))


make_schedule = lru_cache(maxsize=512)(build_schedule)
"""The same, cached: a schedule is a constant of a layer, asked for in every forward."""


def _steps(stride: Size) -> list[list[Phase]]:
    # The phases of a first one at the origin, by the step in which they are made: the origin, the centre, and
    # the others by how few axes they are displaced along, all and all but one being alike.
    axes = sum(s > 1 for s in stride)
    centre = tuple(s // 2 for s in stride)
    steps: list[list[Phase]] = [[(0,) * len(stride)], [centre]] + [[] for _ in range(max(axes - 1, 1))]
    for phase in all_phases(stride):
        displaced = sum(a > 0 for a in phase)
        if displaced and phase != centre:
            steps[1 + axes - min(displaced, max(axes - 1, 0))].append(phase)
    return [step for step in (steps[:1] if axes == 0 else steps) if step]


def _shifted(phase: Phase, anchor: Phase, stride: Size) -> Phase:
    return tuple((a + b) % s for a, b, s in zip(phase, anchor, stride, strict=True))


def _dense(targets: list[Phase], sources: list[Phase], size: Size) -> Stage:
    whole = tuple(tuple(range(k)) for k in size)
    terms = []
    for source in sources:
        start = _window_start(targets, source, size)
        terms += [Term(target, source, start, size, whole) for target in targets]
    return Stage(tuple(targets), tuple(sources), tuple(terms))


def _window_start(targets: list[Phase], source: Phase, size: Size) -> Size:
    # An odd window is centred, as in the authors' code. An even one leans to the side on which the targets
    # lie.
    start = []
    for axis, k in enumerate(size):
        lean = sum(t[axis] - source[axis] for t in targets) >= 0
        start.append(-(k // 2) + (1 if k % 2 == 0 and lean else 0))
    return tuple(start)


def _masked(targets: list[Phase], sources: list[Phase], size: Size) -> Stage:
    # On the full-resolution grid, tap (y, x) of target a reads pixel a + (y, x) - size // 2; it belongs to a
    # source b if that pixel's phase is b, at the low-resolution offset (a + y - size // 2 - b) / 2.
    terms = []
    for source, target in product(sources, targets):
        shift = [a - k // 2 - b for a, b, k in zip(target, source, size, strict=True)]
        taps = tuple(tuple(range(m % 2, k, 2)) for m, k in zip(shift, size, strict=True))
        if all(taps):
            start = tuple((m + t[0]) // 2 for m, t in zip(shift, taps, strict=True))
            terms.append(Term(target, source, start, tuple(map(len, taps)), taps))
    return Stage(tuple(targets), tuple(sources), tuple(terms), shared=True)


def _near(target: Phase, made: list[Phase], stride: Size) -> Stage:
    # Pixels around the target by the side on which they lie along each axis; of each side the nearest one.
    fewest = min(sum(a != b for a, b in zip(target, source, strict=True)) for source in made)
    nearest: dict[tuple[bool | None, ...], tuple[int, Phase, Size]] = {}
    for source in made:
        axes: list[list[tuple[bool | None, int, int]]] = []  # side, offset, distance
        for a, b, s in zip(target, source, stride, strict=True):
            last = (a - b) // s  # of the source's pixels, the last one not after the target
            far = a - b - last * s
            axes.append([(False, last, far), (True, last + 1, s - far)] if far else [(None, 0, 0)])
        if sum(len(axis) > 1 for axis in axes) > fewest:
            continue
        for corner in product(*axes):
            side = tuple(c[0] for c in corner)
            far = sum(c[2] ** 2 for c in corner)
            if side not in nearest or far < nearest[side][0]:
                nearest[side] = (far, source, tuple(c[1] for c in corner))
    terms: list[Term] = []
    read = 0
    for source in made:
        offsets = sorted(offset for _, b, offset in nearest.values() if b == source)
        if not offsets:
            continue
        start = tuple(map(min, zip(*offsets, strict=True)))
        size = tuple(max(o) - a + 1 for o, a in zip(zip(*offsets, strict=True), start, strict=True))
        # a full box is one window; of any other, each pixel is one
        boxes = [(start, size)] if prod(size) == len(offsets) else [(o, (1,) * len(size)) for o in offsets]
        for start, size in boxes:
            taps = tuple(range(read, read + prod(size)))
            terms.append(Term(target, source, start, size, (taps,)))
            read += prod(size)
    return Stage((target,), tuple(dict.fromkeys(t.source for t in terms)), tuple(terms), compact=True)
