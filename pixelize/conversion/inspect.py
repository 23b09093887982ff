"""`inspect`: every up-sampling site of a model, looked at and left alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixelize.conversion.plan import known_inputs, look, report_found
from pixelize.conversion.report import Report
from pixelize.conversion.verify import observe
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.running.models import check_model, uncompiled


@all_or_nothing
def inspect(model: nn.Module, example_inputs: Any = None) -> Report:
    """Finds every up-sampling site of ``model``: what can be converted, what cannot and why. Changes nothing.

    Args:
        model: any module.
        example_inputs: what the model takes, a tensor, a tuple or a dict: lets it be captured as a graph,
            which finds resizes followed by convolutions and pixel shuffles in its forward, and counts
            multiply-adds. Without it a known library's adapter supplies them.
    """
    check_model(model)
    inner = uncompiled(model)
    inputs, notes = known_inputs(inner, example_inputs)
    survey = look(inner, inputs, notes)
    report = report_found(inner, survey)
    if example_inputs is not None:
        counts = observe(inner, example_inputs, survey.sites).multiply_adds
        for row in report.sites:
            row.multiply_adds_before = counts.get(row.name)
    return report
