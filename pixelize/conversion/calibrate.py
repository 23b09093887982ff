"""`calibrate`: refits the dependency kernels of a converted model to what the original computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from pixelize.calibration.fit_model import fit_model
from pixelize.conversion.report import Report
from pixelize.inheritance.record import keep_report, kept_report
from pixelize.layers.dependency_kernels import PixelDependencies
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.precision import full_precision
from pixelize.running.models import check_model, uncompiled


@all_or_nothing
def calibrate(
    model: nn.Module, data: Iterable[Any], *, joint_steps: int = 0, progress: bool = True
) -> nn.Module:
    """Refits the dependency kernels of a converted model's layers, in place, to what the original model
    computes on ``data``; returns ``model``.

    Layer by layer in the order of execution: the layer's own input in the converted model, with the layers
    before it fitted already, against the original layer's output in the original model. Least squares on
    streamed normal equations: memory does not depend on how much data there is. No labels are needed.

    One sample in eight is held back: on these the ridge is chosen and the errors in :func:`pixelize.report`
    are measured.

    Args:
        model: a model from :func:`pixelize.convert`, not trained since.
        data: an iterable of inputs, a tensor, tuple or dict each, on the model's device. Of a generator or
            stream the first 16,384 samples or 1 GiB are read, and kept in memory.
        joint_steps: batches on which, after its least squares, each layer of which not all phases see the
            input is trained, its kernels together, with errors counted as what they cost in the original
            model's outputs (:func:`pixelize.calibration.joint_fit.fit_jointly`). Worth its time where a
            layer has fewer output than input channels, with a few thousand samples or data that are new
            in each pass; a few hundred steps.
        progress: show a progress bar on standard error.

    Raises:
        PixelizeError: the model was not converted, or its original weights are not at hand (it was loaded,
            or hardened).
        ArgumentError: there is no data, the model cannot be run on it, or ``joint_steps`` is negative.
    """
    check_model(model)
    inner = uncompiled(model)
    kernels = [p for m in inner.modules() if isinstance(m, PixelDependencies) for p in m.parameters()]
    with Change(inner, written=kernels), full_precision():
        errors = fit_model(inner, data, joint_steps=joint_steps, progress=progress)
        report: Report | None = kept_report(inner)
        if report is not None:
            rows = [replace(row, error=errors.get(row.name, row.error)) for row in report.sites]
            keep_report(inner, replace(report, sites=rows))
        return model
