"""Models run on the same inputs and measured, for a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.conversion.inspect import inspect
from pixelize.conversion.report import Report
from pixelize.diagnosis.diagnose import diagnose
from pixelize.diagnosis.report import Diagnosis
from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import as_periods, checkerboard, minimum_size
from pixelize.measure.decibels import psnr
from pixelize.measure.probes import LayerProbes
from pixelize.pages.findings import Findings, Layer, Variant
from pixelize.rewrites import survey
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.inputs import one_sample, shape_of, whole_inputs
from pixelize.running.outputs import relative_error, tensors
from pixelize.running.pictures import pictures_of, run


def measure(
    models: Mapping[str, nn.Module],
    inputs: Sequence[Any],
    *,
    title: str,
    told: str,
    period: int | tuple[int, int] | None = None,
    report: Report | None = None,
    natural: Iterable[Tensor] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Findings:
    """Runs every model on every input and measures what comes out.

    Args:
        models: variants of one model by name, the one to compare with first.
        inputs: a tensor, tuple or dict each.
        title: of the report. ``told``: what the inputs are, in words.
        period: of the checkerboard; the stride of the last up-sampler if not given (2 if there is none).
        report: what the conversion did; by default what an inspection of the first model finds.
        natural: pictures of the same kind that no model made, to compare levels with.
        progress: told each step in words.

    Raises:
        ArgumentError: a model does not take the inputs, or its output holds NaN or inf.
    """
    if not models or not inputs:
        raise ArgumentError("a report needs a model and inputs")
    first = next(iter(models.values()))
    progress("looking for up-samplers")
    example = one_sample(inputs[0])
    with evaluation(first):
        _output(first, example, next(iter(models)))
        example = one_sample(whole_inputs(first, example))
    report = report or inspect(first, example)
    sites = survey(first, example).sites
    outputs: dict[str, list[Tensor]] = {}
    uneven: dict[str, dict[str, float]] = {}
    order: list[str] = []
    errors: dict[str, float] = {}
    reference: list[Any] = []
    for name, model in models.items():
        progress(f"running {name}")
        probes = LayerProbes(model, sites)
        raw = probes.run(lambda m=model, n=name: [_output(m, x, n) for x in inputs])  # type: ignore[misc]
        uneven[name] = probes.unevenness()
        order = order or probes.order
        outputs[name] = [p.float().cpu() for out in raw if (p := pictures_of(out)) is not None]
        if reference:
            errors[name] = max(relative_error(a, b) for a, b in zip(reference, raw, strict=True))
        else:
            reference = raw
    strides = {site.name: site.geometry.stride for site in sites}
    notes: list[str] = []
    chosen = _period(period, order, strides, next(iter(outputs.values())), notes)
    progress("measuring")
    variants = [
        Variant(
            name,
            _levels(outputs[name], chosen, notes),
            sum(p.numel() for p in models[name].parameters()),
            errors.get(name),
            _psnr(next(iter(outputs.values())), outputs[name]) if name in errors else None,
        )
        for name in models
    ]
    known = {s.name for s in sites}
    progress("diagnosing")
    diagnosis = _diagnosis(first, inputs, notes)
    makers = {name for source in diagnosis.sources for name in source.names} if diagnosis else set()
    layers = [
        Layer(s, {v: values[s.name] for v, values in uneven.items() if s.name in values}, s.name in makers)
        for s in report.sites
        if s.status != "skipped" or s.name in known
    ]
    return Findings(
        title, type(first).__name__, told, chosen, variants, layers, report, _of_one_size(outputs, notes),
        _levels(list(natural), chosen, notes) if natural is not None else None, diagnosis, notes,
    )  # fmt: skip


def _diagnosis(model: nn.Module, inputs: Sequence[Any], notes: list[str]) -> Diagnosis | None:
    """Where the first model's pattern comes from; None where there are no pictures to tell it by."""
    try:
        return diagnose(model, inputs)
    except ArgumentError as error:
        _once(notes, f"Where a pattern comes from was not looked into: {error}")
        return None


def _output(model: nn.Module, inputs: Any, name: str) -> Any:
    try:
        output = run(model, inputs)
    except Exception as error:
        text = " ".join(str(error).split())
        raise ArgumentError(
            f"{name}: the model could not be run on an input of shape {shape_of(inputs)}: "
            f"{type(error).__name__}: {text[:300]}"
        ) from error
    if not all(bool(torch.isfinite(t).all()) for t in tensors(output)):
        raise ArgumentError(
            f"{name}: the model's output holds NaN or inf for an input of shape {shape_of(inputs)}; find out "
            "which layer makes them"
        )
    return output


def _period(
    period: int | tuple[int, int] | None,
    order: list[str],
    strides: dict[str, tuple[int, ...]],
    pictures: list[Tensor],
    notes: list[str],
) -> int | tuple[int, int]:
    if period is not None:
        as_periods(period)
        return period
    pairs = {name: (stride[0], stride[1]) for name, stride in strides.items() if len(stride) == 2}
    last = next((pairs[name] for name in reversed(order) if name in pairs), (2, 2))
    least = minimum_size(last)
    if last != (2, 2) and any(p.shape[-2] < least[0] or p.shape[-1] < least[1] for p in pictures):
        notes.append(
            f"The pictures are too small for the last up-sampler's period {last[0]}x{last[1]}: "
            "2 was measured."
        )
        last = (2, 2)
    return last[0] if last[0] == last[1] else last


def _levels(pictures: list[Tensor], period: int | tuple[int, int], notes: list[str]) -> dict[str, Any] | None:
    least = minimum_size(as_periods(period))
    if not pictures:
        note = "The model's output holds no pictures: there is nothing to measure or to show."
    elif any(p.shape[-2] < least[0] or p.shape[-1] < least[1] for p in pictures):
        note = f"The pictures are too small to measure: {least[0]}x{least[1]} pixels are needed."
    else:
        count = sum(len(p) for p in pictures)
        if count < 8:
            _once(notes, f"Measured on {count} pictures only: single pictures vary by several dB.")
        return checkerboard(iter(pictures), period)
    _once(notes, note)
    return None


def _psnr(before: list[Tensor], after: list[Tensor]) -> float | None:
    if (
        not before
        or len(before) != len(after)
        or any(a.shape != b.shape for a, b in zip(before, after, strict=True))
    ):
        return None
    return psnr(before, after)


def _of_one_size(outputs: dict[str, list[Tensor]], notes: list[str]) -> dict[str, Tensor]:
    """The pictures of the first one's size, by variant."""
    first = next(iter(outputs.values()))
    if not first:
        return {}
    kept = [i for i, p in enumerate(first) if p.shape[1:] == first[0].shape[1:]]
    if len(kept) < len(first):
        _once(notes, "Pictures of several sizes: those of the first one's size are shown, all are measured.")
    of_one_size = {}
    for name, pictures in outputs.items():
        if len(pictures) == len(first) and all(pictures[i].shape == first[i].shape for i in kept):
            of_one_size[name] = torch.cat([pictures[i] for i in kept])
        else:
            _once(notes, f"{name}: its pictures have other shapes and are not shown.")
    return of_one_size


def _once(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)
