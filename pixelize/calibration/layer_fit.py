"""Fitting one layer, on a transposed convolution or a convolution, to given inputs and outputs: linear least
squares, stage by stage, on streamed normal equations.

Every phase is ``F_t[j] = own_t[j] + sum of taps K F_s[j + q]``, where ``own_t`` is what it sees of the
input (nothing in a PixelDCL's later phases). So, the earlier phases being fitted already, the kernels of a
stage solve a linear least-squares problem whose rows are the low-resolution pixels j, whose features are
the student's own earlier phases around j, and whose target is what the teacher's phase has beyond
``own_t[j]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixelize.algebra.interpolation import ALLOWED_COST, PICTURE_CHANNELS, interpolation
from pixelize.algebra.least_squares import NormalEquations
from pixelize.algebra.polyphase import (
    AxisPhase,
    Phase,
    Size,
    all_phases,
    axis_phases,
    last_axes,
    padded,
    phase_weight,
)
from pixelize.algebra.schedule import Stage
from pixelize.inheritance.inherit import effective_weight
from pixelize.layers.dependencies import dependency
from pixelize.layers.dependency_kernels import InputGated
from pixelize.layers.functional import first_phase, gate_mask
from pixelize.layers.functional_conv import input_phases
from pixelize.layers.pixel_conv import PixelConvolution
from pixelize.layers.pixel_dcl import PixelDCL, PixelDeconvolution, input_kernels_of, iPixelDCL
from pixelize.rewrites.state.precision import float64, zeros64

Layer = PixelDeconvolution | PixelConvolution
Read = tuple[int, Size]
"""One thing that a regression reads: which map, and at which low-resolution offset."""
Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives, each time it is called, the same pairs of a layer's input (N, C_in, *size) and wanted output (N,
C_out, *size).
"""

HELD_BACK = 8
"""One sample in so many is held back: the ridge is chosen on it, and the error measured."""
ROWS_PER_BATCH = 32768
"""Pixels of one batch that a fit looks at, at most; drawn at random where there are more."""
CHUNK = 2**25
"""Numbers in one block of rows."""


def fit_layer(layer: Layer, pairs: Pairs, *, first: bool = True, allowed_cost: float = ALLOWED_COST) -> float:
    """Fits ``layer`` to ``pairs``, in place, and returns its relative error on the held-back samples (on
    all if there is but one).

    ``first``: whether what a PixelDCL sees of the input is fitted too, rather than left as it was
    inherited. The bias stays. ``allowed_cost``: see :func:`fit_stage`.
    """
    if first and isinstance(layer, PixelDCL):
        fit_inputs(layer, pairs)
    for number, stage in enumerate(layer.plan.stages):
        fit_stage(layer, number, stage, pairs, allowed_cost=allowed_cost)
    return layer_error(layer, pairs)


def fit_inputs(layer: PixelDCL, pairs: Pairs) -> None:
    """Refits a PixelDCL's weight to the teacher's first phase, in place, and likewise every other phase
    that sees the input.
    """
    kernels = {phase: _fit_input(layer, phase, pairs) for phase in input_kernels_of(layer)}
    fitted = {
        phase: nn.Parameter(k, requires_grad=layer.weight.requires_grad)
        for phase, k in kernels.items()
        if k is not None
    }
    layer.weight = fitted.get(layer.anchor, layer.weight)
    for i, phase in enumerate(layer.further_phases()):
        layer.input_kernels[i] = fitted.get(phase, layer.input_kernels[i])


def _fit_input(layer: PixelDCL, phase: Phase, pairs: Pairs) -> Tensor | None:
    axes = _axes(layer, phase)
    reads = [(0, offset) for offset in product(*(axis.offsets for axis in axes))]
    equations = None
    for x, y, held in numbered(pairs):
        for block in _blocks([x], reads, {phase: _phase(layer, y, phase)}, held, layer.groups):
            equations = equations or block.equations(1)
            equations.add(block.features, block.targets[phase], held=block.held)
    if equations is None:
        return None
    taps = equations.solve().unflatten(1, (*(len(axis.taps) for axis in axes), -1))
    n = len(axes)
    # taps ascend as offsets fall
    weight = taps.flip(*range(1, 1 + n)).movedim((-2, -1), (1, 2)).flatten(0, 1)
    return weight.to(layer.weight).contiguous()


def fit_stage(
    layer: Layer,
    number: int,
    stage: Stage,
    pairs: Pairs,
    *,
    allowed_cost: float = ALLOWED_COST,
) -> None:
    """Refits the dependency kernel of one stage, in place, the earlier ones being as they are.

    Kernels that make pictures interpolate if that costs at most ``allowed_cost`` times the error.
    """
    groups, targets = layer.dependency_groups, stage.targets
    reads = {t: [(stage.sources.index(f.source), f.offset) for f in stage.features(t)] for t in targets}
    equations = None
    for x, y, held in numbered(pairs):
        phases = phase_maps(layer, x, list(y.shape[2:]), stages=number)
        wanted = {t: _phase(layer, y, t) for t in targets}
        for t in targets:
            if t in phases:
                wanted[t] = wanted[t] - phases[t][last_axes(map(slice, wanted[t].shape[2:]))]
        maps = [phases[b] for b in stage.sources]
        if stage.shared:  # one kernel for all targets: more rows
            for t in targets:
                for block in _blocks(maps, reads[t], {t: wanted[t]}, held, groups):
                    equations = equations or block.equations(1)
                    equations.add(block.features, block.targets[t], held=block.held)
        else:  # all targets read the same: more right-hand sides
            for block in _blocks(maps, reads[targets[0]], wanted, held, groups):
                equations = equations or block.equations(len(targets))
                right = torch.cat([block.targets[t] for t in targets], -1)
                equations.add(block.features, right, held=block.held)
    if equations is None:
        return
    sees_input = isinstance(layer, InputGated)
    if isinstance(layer, PixelDCL):
        sees_input = any(t in input_kernels_of(layer) for t in targets)
    if layer.out_channels > PICTURE_CHANNELS or sees_input or stage.shared:
        solved = equations.solve()
    else:
        channels = torch.eye(layer.out_channels // groups, device="cpu").to(equations.cross)
        rows, wanted_rows = interpolation(stage, layer.period(), channels)
        solved = equations.solve_favouring(rows, wanted_rows, allowed_cost=allowed_cost)
    solved = solved.unflatten(1, (len(reads[targets[0]]), -1))
    parts = [solved] * len(targets) if stage.shared else solved.chunk(len(targets), -1)
    kernel = layer.dependency_kernels[number]
    new = zeros64(tuple(kernel.shape), kernel.device)
    stage.assemble(dict(zip(targets, parts, strict=True)), new, groups)
    with torch.no_grad():
        kernel.copy_(new)


def layer_error(layer: nn.Module, pairs: Pairs) -> float:
    """The relative error on the held-back samples: the root of the squared error over the squared output,
    both without the bias.
    """
    return layer_errors([layer], pairs)[0]


def layer_errors(layers: Sequence[nn.Module], pairs: Pairs, weighing: nn.Module | None = None) -> list[float]:
    """:func:`layer_error` of several layers with the same bias on the same samples; errors and outputs pass
    through ``weighing`` if given.
    """

    def power(maps: Tensor) -> Tensor:
        weighed = maps if weighing is None else weighing(maps.to(next(weighing.parameters(), maps)))
        return float64(weighed).square().flatten(1).sum(1).cpu()

    bias: Tensor | None = layers[0].bias  # type: ignore[assignment]
    cpu = torch.device("cpu")
    wanted, missed = zeros64((2,), cpu), zeros64((2, len(layers)), cpu)
    for x, y, held in numbered(pairs):
        with torch.no_grad():
            power_of = power(y if bias is None else y - bias.reshape(-1, *(1,) * (y.dim() - 2)))
            missed_by = torch.stack([power(_output(layer, x, y) - y) for layer in layers], 1)
        for side in (0, 1):
            wanted[side] += power_of[held.cpu() == bool(side)].sum()
            missed[side] += missed_by[held.cpu() == bool(side)].sum(0)
    side = 1 if wanted[1] > 0 else 0
    return (missed[side] / wanted[side]).sqrt().tolist() if wanted[side] > 0 else [0.0] * len(layers)


def _output(layer: nn.Module, x: Tensor, like: Tensor) -> Tensor:
    return layer(x) if isinstance(layer, PixelConvolution) else layer(x, list(like.shape[2:]))


def phase_maps(layer: Layer, x: Tensor, size: list[int], stages: int) -> dict[Phase, Tensor]:
    """The layer's phases without bias after its first ``stages`` stages; of the later ones what they see of
    the input, if anything.
    """
    with torch.no_grad():
        phases = own_phases(layer, x, size)
        for stage, kernel in list(zip(layer.plan.stages, layer.dependency_kernels, strict=True))[:stages]:
            for t, part in dependency(
                stage, kernel, phases, layer.out_channels, layer.dependency_groups
            ).items():
                phases[t] = phases[t] + part if t in phases else part
        return phases


def own_phases(layer: Layer, x: Tensor, size: list[int]) -> dict[Phase, Tensor]:
    """What each phase sees of the input ``x`` (N, C_in, *input), for those that see it: (N, C_out,
    *ceil(size / period)).
    """
    if isinstance(layer, PixelConvolution):
        return input_phases(
            x, effective_weight(layer), layer.stride, layer.padding, layer.dilation, layer.groups,
            layer.padding_mode, layer.period(), getattr(layer, "input_gate", None),
            not isinstance(layer, InputGated),
        )  # fmt: skip
    geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    grids = zip(size, layer.stride, x.shape[2:], strict=True)
    growth = tuple(-(-m // s) - before for m, s, before in grids)
    if isinstance(layer, PixelDCL):
        kernels = input_kernels_of(layer).items()
        return {a: first_phase(x, taps, *geometry, layer.groups, growth, a) for a, taps in kernels}
    assert isinstance(layer, iPixelDCL)
    weight = effective_weight(layer)
    if layer.input_gate is not None:
        weight = weight * gate_mask(*geometry, layer.anchor, layer.input_gate.to(weight.dtype))
    phases = {}
    for phase in all_phases(layer.stride):
        axes = _axes(layer, phase)
        if all(axis.taps for axis in axes):
            taps = phase_weight(weight, *axes)
            phases[phase] = first_phase(x, taps, *geometry, layer.groups, growth, phase)
    return phases


class _Block(NamedTuple):
    """Rows of a regression: features (groups, rows, n), for each target phase (groups, rows, C_out/groups),
    and whether they are held back.
    """

    features: Tensor
    targets: dict[Phase, Tensor]
    held: bool

    def equations(self, targets: int) -> NormalEquations:
        """Empty sums for such rows with ``targets`` phases side by side."""
        groups, _, width = next(iter(self.targets.values())).shape
        return NormalEquations(groups, self.features.shape[-1], targets * width, self.features.device)


def _blocks(
    maps: list[Tensor], reads: list[Read], wanted: dict[Phase, Tensor], held: Tensor, groups: int
) -> Iterator[_Block]:
    """The rows of one batch, in blocks of bounded size.

    ``maps``: what is read, (N, C, *grid) each; ``wanted``: for each target phase (N, C_out, *grid), of
    which the pixels that all have count.
    """
    grid = tuple(map(min, zip(*(t.shape[2:] for t in wanted.values()), strict=True)))
    n = held.numel()
    if prod(grid) * n == 0:
        return
    device = maps[0].device
    rows = torch.arange(n * prod(grid), device=device)
    if len(rows) > ROWS_PER_BATCH:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randperm(len(rows), generator=generator, device="cpu")[:ROWS_PER_BATCH]
        rows = rows[drawn.to(device)]
    at = torch.stack(torch.unravel_index(rows, (n, *grid)))  # sample, and position along each axis
    offsets = [offset for _, offset in reads]
    before = [max(0, *(-q for q in axis)) for axis in zip(*offsets, strict=True)]
    around = []
    for m in maps:
        axes = zip(zip(*offsets, strict=True), grid, m.shape[2:], strict=True)
        after = [max(0, *(q + wide - size for q in axis)) for axis, wide, size in axes]
        around.append(padded(m, before, after).movedim(1, -1).contiguous())
    outputs = {t: y.movedim(1, -1) for t, y in wanted.items()}
    size = max(1, CHUNK // (len(reads) * maps[0].shape[1]))
    for side in (False, True):
        for b, *where in (part.unbind() for part in at[:, held[at[0]] == side].split(size, 1)):
            if not len(b):
                continue
            rows_of = (b, *where)
            read = []  # (rows, C) each
            for source, offset in reads:
                place = (b, *(j + (q + lead) for j, q, lead in zip(where, offset, before, strict=True)))
                read.append(around[source][place])
            features = torch.stack(read, 1).unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)
            targets = {t: y[rows_of].unflatten(1, (groups, -1)).transpose(0, 1) for t, y in outputs.items()}
            yield _Block(features, targets, side)


def numbered(pairs: Pairs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs, and for each of their samples whether it is held back: the same ones in every pass."""
    seen = 0
    for x, y in pairs():
        number = torch.arange(seen, seen + len(x), device=x.device)
        yield x, y, number % HELD_BACK == 1
        seen += len(x)


def _phase(layer: Layer, y: Tensor, phase: Phase) -> Tensor:
    """One phase of an output, without the bias."""
    part = y[last_axes(slice(a, None, s) for a, s in zip(phase, layer.period(), strict=True))]
    return part if layer.bias is None else part - layer.bias.detach()[last_axes((None,) * len(phase))]


def _axes(layer: PixelDeconvolution, phase: Phase) -> list[AxisPhase]:
    geometry = zip(layer.kernel_size, layer.stride, layer.padding, layer.dilation, phase, strict=True)
    return [axis_phases(k, s, p, d)[a] for k, s, p, d, a in geometry]
