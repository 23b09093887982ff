"""``layer="auto"``: at each site the cheapest design whose measured error stays within a tolerance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from pixelize.algebra.polyphase import Size
from pixelize.algebra.schedule import make_schedule
from pixelize.calibration.layer_fit import fit_layer, layer_error
from pixelize.calibration.teacher import CachedPairs, TeacherStudent
from pixelize.errors import ArgumentError
from pixelize.inheritance.build import build_layer, layer_name
from pixelize.inheritance.cost import multiply_adds
from pixelize.inheritance.inherit import Design
from pixelize.inheritance.record import (
    Record,
    inner_layer,
    new_record,
    origin_now,
    original,
    record_of,
    refresh,
    remember,
)
from pixelize.layers.pixel_dcl import PixelDeconvolution
from pixelize.rewrites import become, state_of
from pixelize.rewrites.state.splice import State
from pixelize.running.batches import rereadable
from pixelize.running.progress import progress_bar

SMALL_WINDOW = 2
"""The window along each axis that is tried beside the one asked for: with it, a PixelDCL costs less than
the transposed convolution.
"""
SMALL_PERIOD = 4
"""With so many phases or fewer, the sequential schedule is tried beside the one asked for: it has more
designs in between.
"""


@dataclass(frozen=True)
class Candidate:
    """One design tried at a site: its measured relative error, and its multiply-adds for one sample."""

    layer: str
    design: Design
    error: float
    multiply_adds: int

    @property
    def name(self) -> str:
        """The class of the layer."""
        return layer_name(self.layer, len(self.design.kernel_size))

    def __str__(self) -> str:
        window = "x".join(map(str, self.design.kernel_size))
        told = f"{self.name} {window} {self.design.schedule}"
        told += f" {self.design.input_stages}" if self.design.input_stages else ""
        told += " depthwise" if self.design.groups == -1 else ""
        return f"{told}: error {self.error:.2g}, {self.multiply_adds / 1e6:.4g}M multiply-adds"


@dataclass(frozen=True)
class Choice:
    """What a site became: the last of the candidates that were tried."""

    tried: tuple[Candidate, ...]

    @property
    def taken(self) -> Candidate:
        """The candidate that the site became."""
        return self.tried[-1]

    def __str__(self) -> str:
        return "; ".join(map(str, self.tried))


def choose_designs(
    model: nn.Module, data: Iterable[Any], tolerance: float, *, progress: bool = True
) -> dict[str, Choice]:
    """Gives every converted site of ``model``, in place, the cheapest design whose error on ``data`` is at
    most ``tolerance``.

    ``model`` was converted with ``layer="ipixeldcl"``, and not trained since. Sites are settled in the
    order of execution, each on its own inputs as the sites before it leave them, against the original
    model's output there. The exact design is iPixelDCL with depthwise dependency kernels, which costs
    hardly more than the transposed convolution. Tried before it, cheapest first, are those that cost less:
    PixelDCL, and the designs in which the phases of the first stages see the input too
    (:class:`pixelize.PixelDCL2d`), each with the model's window and with 2x2, and with
    the model's groups and depthwise. Where none will do the site is exact, and its error is that of its
    inputs.

    Returns for each module what was tried. Raises ArgumentError and PixelizeError as
    :func:`pixelize.calibrate`.
    """
    batches = rereadable(data)
    probe = next(iter(batches), None)
    if probe is None:
        raise ArgumentError("data is empty: layer='auto' needs at least one batch of inputs")
    models = TeacherStudent(model)
    calls = models.calls(probe)
    choices = {}
    with progress_bar(progress) as bar:
        for name, times in bar.track(calls.items(), description="choosing"):
            if isinstance(models.layer(name), PixelDeconvolution):
                choices[name] = _choose(models, name, batches, times, tolerance)
    return choices


def _choose(
    models: TeacherStudent, name: str, batches: Iterable[Any], calls: int, tolerance: float
) -> Choice:
    pairs = CachedPairs(models, name, batches, calls)
    module = models.modules[name]
    record: Record = record_of(module)  # type: ignore[assignment]
    record = replace(record, origin=origin_now(record, module))
    x, y = next(iter(pairs()))
    tried = []
    for cost, layer, design in _by_cost(record, x, y):
        become(module, _built(record, layer, design))
        fitted = models.layer(name)
        if layer == "pixeldcl":
            assert isinstance(fitted, PixelDeconvolution)
            error = fit_layer(fitted, pairs)
        else:
            error = layer_error(fitted, pairs)
        tried.append(Candidate(layer, design, error, cost))
        if error <= tolerance:
            break
    refresh(module)
    return Choice(tuple(tried))


def _by_cost(record: Record, x: Tensor, y: Tensor) -> list[tuple[int, str, Design]]:
    """The designs that cost less than the exact one, with their multiply-adds, the cheapest first; then the
    exact one.
    """
    wanted, stride = record.design, record.site.geometry.stride
    schedules = {wanted.schedule} | ({"sequential"} if prod(stride) <= SMALL_PERIOD else set())
    groupings = {wanted.groups, -1} if record.site.geometry.out_channels > 1 else {wanted.groups}
    candidates = []
    for schedule in sorted(schedules):
        for size in _windows(wanted, schedule):
            for stages in range(len(make_schedule(schedule, stride, size).stages)):
                for groups in groupings:
                    design = replace(
                        wanted, kernel_size=size, schedule=schedule, input_stages=stages, groups=groups
                    )
                    candidates.append((_cost(record, "pixeldcl", design, x, y), "pixeldcl", design))
    depthwise = (replace(wanted, groups=-1, kernel_size=size) for size in _windows(wanted, wanted.schedule))
    exact = min(
        ((_cost(record, "ipixeldcl", design, x, y), "ipixeldcl", design) for design in depthwise),
        key=lambda c: c[0],
    )
    cheaper = sorted((c for c in candidates if c[0] < exact[0]), key=lambda c: c[0])
    return [*cheaper, exact]


def _windows(wanted: Design, schedule: str) -> set[Size]:
    """The windows that are tried; a masked kernel is none smaller than 3x3, and near ones have their own."""
    if schedule in ("masked", "near"):
        return {wanted.kernel_size}
    return {wanted.kernel_size, (SMALL_WINDOW,) * len(wanted.kernel_size)}


def _cost(record: Record, layer: str, design: Design, x: Tensor, y: Tensor) -> int:
    built: nn.Module = object.__new__(nn.Module)
    become(built, _built(record, layer, design))
    return multiply_adds(inner_layer(built), x[:1])


def _built(record: Record, layer: str, design: Design) -> State:
    """The module of a site with zero dependency kernels, as a state to :func:`pixelize.rewrites.become`."""
    new, _, _ = build_layer(record.site, original(record), layer, design, "zero")
    remember(new, new_record(record.site, layer, design, record.origin, new))
    return state_of(new)
