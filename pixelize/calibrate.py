"""`calibrate`: refits the dependency kernels of a converted model to what the original computes, layer by
layer, on unlabelled data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import nn

from pixelize.convert import Record, fingerprint
from pixelize.errors import ArgumentError, PixelizeError, PixelizeWarning
from pixelize.joint_fit import LOOKED_AT, fit_jointly
from pixelize.layer_fit import fit_layer
from pixelize.layers import PixelDCL2d
from pixelize.lockstep import KeptPairs, Lockstep
from pixelize.report import report
from pixelize.sensitivity import sensitivities


def calibrate(
    model: nn.Module, data: Iterable[Any], *, joint_steps: int = 0, progress: bool = True
) -> nn.Module:
    """Refits a converted model's pixel deconvolutions, in place, to what the original model computes on
    ``data``; returns ``model``.

    Layer by layer in the order of execution: the layer's own input in the converted model, with the layers
    before it fitted already, against the original layer's output in the original model. Least squares on
    streamed normal equations: memory does not depend on how much data there is. No labels are needed.

    One sample in eight is held back: on these the ridge is chosen and the errors in :func:`pixelize.report`
    are measured.

    Args:
        model: a model from :func:`pixelize.convert`, not trained since.
        data: an iterable of inputs, a tensor, tuple or dict each, on the model's device. A generator is
            read into memory.
        joint_steps: batches on which, after its least squares, each layer of which not all phases see the
            input is trained, its kernels together, with errors counted as what they cost in the original
            model's outputs (:func:`pixelize.joint_fit.fit_jointly`). Worth its time where a layer has fewer
            output than input channels, with a few thousand samples or data that are new in each pass; a few
            hundred steps.
        progress: show a progress bar on standard error.

    Raises:
        PixelizeError: the model was not converted, or its original weights are not at hand (it was loaded,
            or hardened).
        ArgumentError: there is no data, the model cannot be run on it, or ``joint_steps`` is negative.
    """
    errors = fit_model(model, data, joint_steps=joint_steps, progress=progress)
    inner = getattr(model, "_orig_mod", model)
    if "_pixelize_report" in inner.__dict__:
        for row in report(inner).converted:
            row.error = errors.get(row.name, row.error)
    return model


def fit_model(
    model: nn.Module, data: Iterable[Any], *, joint_steps: int = 0, progress: bool = True
) -> dict[str, float]:
    """:func:`calibrate`, returning the relative error of each layer on held-back samples by the name of its
    module.
    """
    if joint_steps < 0:
        raise ArgumentError(f"joint_steps must not be negative: {joint_steps}")
    batches = list(data) if iter(data) is data else data  # type: ignore[arg-type]
    probe = next(iter(batches), None)
    if probe is None:
        raise ArgumentError("data is empty: calibration needs at least one batch of inputs")
    lockstep = Lockstep(model)
    students = lockstep.students()
    if not students:
        raise PixelizeError(f"this {type(model).__name__} has no PixelDCL2d or iPixelDCL2d to calibrate")
    calls = lockstep.calls(probe)
    errors: dict[str, float] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not progress) as bar:
        task = bar.add_task("calibrating", total=len(calls) * (1 + joint_steps))
        for number, (name, times) in enumerate(calls.items(), 1):
            if name in students:
                bar.update(task, description=f"calibrating {name}")
                student, pairs = students[name], KeptPairs(lockstep, name, batches, times)
                errors[name] = fit_layer(student, pairs)
                bar.advance(task)
                if joint_steps and isinstance(student, PixelDCL2d):
                    again = partial(lockstep.pairs, name, batches, times)  # data may be new in each pass
                    with lockstep.teaching():
                        teacher = lockstep.layer(name)
                        costs = sensitivities(lockstep.model, [teacher], islice(batches, LOOKED_AT))
                    errors[name] = fit_jointly(
                        student, again, joint_steps, costs.get(teacher), lambda: bar.advance(task)
                    )
                _refresh(lockstep.modules[name])
            bar.update(task, completed=number * (1 + joint_steps))
    if missing := students.keys() - errors.keys():
        warnings.warn(
            f"not called on the data, and so left as they were: {', '.join(sorted(missing))}",
            PixelizeWarning,
            stacklevel=3,
        )
    return errors


def _refresh(module: nn.Module) -> None:
    # what calibration changed is no training: revert still knows the way back
    record: Record = module.__dict__["_pixelize_record"]
    module.__dict__["_pixelize_record"] = replace(record, fingerprint=fingerprint(module))
