"""Which phase is made when, and from which others: the dependency schedules of pixel deconvolution.

Gao et al., *Pixel Deconvolutional Networks*: eq. 2 and 3 (``"sequential"``) and figure 4 (``"paired"`` and,
with one shared masked kernel for the last two maps, ``"masked"``). A schedule is plain data; the layers, the
fits and ``fold`` read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from pixelize.algebra.polyphase import Phase, ungrouped
from pixelize.errors import ArgumentError

Window = tuple[Phase, tuple[int, int], Tensor]
SCHEDULES: tuple[str, ...] = ("paired", "sequential", "masked")


@dataclass(frozen=True)
class Term:
    """One window of a stage: ``target`` reads ``source`` at the low-resolution ``start .. start + size - 1``
    of each axis.

    ``rows`` and ``columns`` index the stage's kernel: the taps that this window is made of, in the window's
    order.
    """

    target: Phase
    source: Phase
    start: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Feature:
    """One pixel that a target reads: ``source`` at a low-resolution ``offset``, weighted by the kernel's
    ``tap`` (row, column).
    """

    source: Phase
    offset: tuple[int, int]
    tap: tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """Phases made in one step, each the input's part plus a convolution of the sources.

    A dense stage has one kernel (n_targets * C, n_sources * C / groups, k, k). A shared one (schedule
    ``"masked"``) has a single kernel (C, C / groups, k, k), laid over the full-resolution grid on which only
    the sources are non-zero.
    """

    targets: tuple[Phase, ...]
    sources: tuple[Phase, ...]
    terms: tuple[Term, ...]
    shared: bool

    def kernel_shape(self, channels: int, groups: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The shape of this stage's dependency kernel for ``channels`` feature maps."""
        if self.shared:
            return channels, channels // groups, *size
        return len(self.targets) * channels, len(self.sources) * (channels // groups), *size

    def features(self, target: Phase) -> tuple[Feature, ...]:
        """What ``target`` reads. In a shared stage the lists of all targets are in the same order of taps."""
        found = [
            Feature(term.source, (term.start[0] + i, term.start[1] + j), (row, column))
            for term in self.terms
            if term.target == target
            for i, row in enumerate(term.rows)
            for j, column in enumerate(term.columns)
        ]
        return tuple(sorted(found, key=lambda f: f.tap)) if self.shared else tuple(found)

    def assemble(self, solutions: dict[Phase, Tensor], kernel: Tensor, groups: int) -> None:
        """Writes least-squares solutions into a dependency kernel of this stage, in place.

        ``solutions``: for each target (groups, n_features, C/groups in, C/groups out); a shared stage takes
            the first target's.
        """
        channels = kernel.shape[0] if self.shared else kernel.shape[0] // len(self.targets)
        width = channels // groups
        shape = (groups, 1, width, 1, width) if self.shared else (
            groups, len(self.targets), width, len(self.sources), width
        )  # fmt: skip
        view = kernel.view(*shape, *kernel.shape[-2:])
        for i, target in enumerate(self.targets[:1] if self.shared else self.targets):
            for j, feature in enumerate(self.features(target)):
                source = 0 if self.shared else self.sources.index(feature.source)
                view[:, i, :, source, :, feature.tap[0], feature.tap[1]] = solutions[target][:, j].transpose(
                    -1, -2
                )

    def windows(self, kernel: Tensor, channels: int, groups: int) -> dict[Phase, list[Window]]:
        """The stage's kernel taken apart: for each target, (source, start, dense kernel (C, C, h, w)) of each
        window it reads.
        """
        found: dict[Phase, list[Window]] = {target: [] for target in self.targets}
        width = channels // groups
        for term in self.terms:
            if self.shared:
                part = kernel
            else:
                shape = (groups, len(self.targets), width, len(self.sources), width, *kernel.shape[-2:])
                i, j = self.targets.index(term.target), self.sources.index(term.source)
                part = kernel.view(shape)[:, i, :, j].reshape(channels, width, *kernel.shape[-2:])
            taps = part[:, :, list(term.rows)][:, :, :, list(term.columns)]
            found[term.target].append((term.source, term.start, ungrouped(taps, groups)))
        return found


@dataclass(frozen=True)
class Schedule:
    """The stages after the first phase, ``anchor``, which sees only the input."""

    name: str
    stride: tuple[int, int]
    anchor: Phase
    stages: tuple[Stage, ...]


def build_schedule(
    name: str, stride: tuple[int, int], kernel_size: tuple[int, int], anchor: Phase = (0, 0)
) -> Schedule:
    """The schedule of that name for a stride, dependency kernels of ``kernel_size`` and a first phase at
    ``anchor``.

    - ``"sequential"``: one phase at a time, each from all before it (eq. 2, 3): s_h * s_w - 1 dependent
      steps.
    - ``"paired"``: the phase half a period away in both directions from the first, then all that remain from
      those two, in one convolution. For stride 2 this is figure 4 of the paper; for any stride it is two
      dependent steps.
    - ``"masked"``: as ``"paired"`` for stride 2, with one kernel shared by the last two maps and masked to
      the taps that fall on the first two: the four edge neighbours of a 3x3 kernel.

    Raises ArgumentError for an unknown name, or for ``"masked"`` with a stride other than 2 or an even
    kernel.
    """
    if name not in SCHEDULES:
        raise ArgumentError(f"schedule is {name!r}; choose one of {', '.join(map(repr, SCHEDULES))}")
    sh, sw = stride
    order = [(0, 0), (sh // 2, sw // 2)]
    order += [(a, b) for a in range(sh) for b in range(sw) if (a, b) not in order]
    # strides of 1 make the centre coincide with the first phase
    order = list(dict.fromkeys(order))
    phases = [((a + anchor[0]) % sh, (b + anchor[1]) % sw) for a, b in order]
    stages: list[Stage] = []
    if name == "sequential":
        stages = [_dense([phases[i]], phases[:i], kernel_size, stride) for i in range(1, len(phases))]
    else:
        if len(phases) > 1:
            stages.append(_dense(phases[1:2], phases[:1], kernel_size, stride))
        if name == "masked":
            if (
                stride != (2, 2)
                or kernel_size[0] % 2 == 0
                or kernel_size[1] % 2 == 0
                or kernel_size == (1, 1)
            ):
                raise ArgumentError(
                    "schedule 'masked' needs stride 2 and odd dependency kernels, 3 or more, not stride "
                    f"{stride} "
                    f"and {kernel_size}; use schedule='paired'"
                )
            stages.append(_masked(phases[2:], phases[:2], kernel_size))
        elif len(phases) > 2:
            stages.append(_dense(phases[2:], phases[:2], kernel_size, stride))
    return Schedule(name, stride, anchor, tuple(stages))


make_schedule = lru_cache(maxsize=512)(build_schedule)
"""The same, cached: a schedule is a constant of a layer, asked for in every forward."""


def _dense(
    targets: list[Phase], sources: list[Phase], size: tuple[int, int], stride: tuple[int, int]
) -> Stage:
    terms = []
    for source in sources:
        start = _window_start(targets, source, size)
        for target in targets:
            terms.append(Term(target, source, start, tuple(range(size[0])), tuple(range(size[1]))))
    return Stage(tuple(targets), tuple(sources), tuple(terms), shared=False)


def _window_start(targets: list[Phase], source: Phase, size: tuple[int, int]) -> tuple[int, int]:
    # An odd window is centred, as in the authors' code. An even one leans to the side on which the targets
    # lie.
    start = []
    for axis in (0, 1):
        k = size[axis]
        lean = sum(t[axis] - source[axis] for t in targets) >= 0
        start.append(-(k // 2) + (1 if k % 2 == 0 and lean else 0))
    return start[0], start[1]


def _masked(targets: list[Phase], sources: list[Phase], size: tuple[int, int]) -> Stage:
    # On the full-resolution grid, tap (y, x) of target a reads pixel a + (y, x) - size // 2; it belongs to a
    # source b if that pixel's phase is b, at the low-resolution offset (a + y - size // 2 - b) / 2.
    def axis(a: int, b: int, k: int) -> tuple[int, tuple[int, ...]]:
        taps = tuple(t for t in range(k) if (a + t - k // 2 - b) % 2 == 0)
        return ((a + taps[0] - k // 2 - b) // 2 if taps else 0), taps

    terms = []
    for source in sources:
        for target in targets:
            top, rows = axis(target[0], source[0], size[0])
            left, columns = axis(target[1], source[1], size[1])
            if rows and columns:
                terms.append(Term(target, source, (top, left), rows, columns))
    return Stage(tuple(targets), tuple(sources), tuple(terms), shared=True)
