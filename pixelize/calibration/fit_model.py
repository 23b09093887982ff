"""`calibrate`: refits the dependency kernels of a converted model to what the original computes, layer by
layer, on unlabelled data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from torch import nn

from pixelize.calibration.joint_fit import LOOKED_AT, fit_jointly
from pixelize.calibration.layer_fit import fit_layer
from pixelize.calibration.sensitivity import sensitivities
from pixelize.calibration.teacher import CachedPairs, TeacherStudent
from pixelize.errors import ArgumentError, PixelizeError, PixelizeWarning
from pixelize.inheritance.record import refresh
from pixelize.layers.pixel_dcl import PixelDCL
from pixelize.running.batches import rereadable
from pixelize.running.progress import progress_bar


def fit_model(
    model: nn.Module, data: Iterable[Any], *, joint_steps: int = 0, progress: bool = True
) -> dict[str, float]:
    """:func:`calibrate`, returning the relative error of each layer on held-back samples by the name of its
    module.
    """
    if joint_steps < 0:
        raise ArgumentError(f"joint_steps must not be negative: {joint_steps}")
    batches = rereadable(data)
    probe = next(iter(batches), None)
    if probe is None:
        raise ArgumentError("data is empty: calibration needs at least one batch of inputs")
    models = TeacherStudent(model)
    students = models.students()
    if not students:
        raise PixelizeError(f"this {type(model).__name__} has no layer with dependencies to calibrate")
    calls = models.calls(probe)
    errors: dict[str, float] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("calibrating", total=len(calls) * (1 + joint_steps))
        for number, (name, times) in enumerate(calls.items(), 1):
            if name in students:
                bar.update(task, description=f"calibrating {name}")
                student, pairs = students[name], CachedPairs(models, name, batches, times)
                errors[name] = fit_layer(student, pairs)
                bar.advance(task)
                if joint_steps and isinstance(student, PixelDCL):
                    again = partial(models.pairs, name, batches, times)  # data may be new in each pass
                    with models.teaching():
                        teacher = models.layer(name)
                        costs = sensitivities(models.model, [teacher], islice(batches, LOOKED_AT))
                    errors[name] = fit_jointly(
                        student, again, joint_steps, costs.get(teacher), lambda: bar.advance(task)
                    )
                refresh(models.modules[name])
            bar.update(task, completed=number * (1 + joint_steps))
    if missing := students.keys() - errors.keys():
        warnings.warn(
            f"not called on the data, and so left as they were: {', '.join(sorted(missing))}",
            PixelizeWarning,
            stacklevel=4,
        )
    return errors
