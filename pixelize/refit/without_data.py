"""Repair without data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.measure.any_axes import checkerboard_nd
from pixelize.measure.checkerboard import frequency_name
from pixelize.refit.calls import named_parameters, replaced
from pixelize.refit.equal_phases import equalised
from pixelize.refit.other_layers import up_samplers
from pixelize.refit.refit import Refit
from pixelize.refit.report import RepairedSite, RepairReport
from pixelize.refit.runner import NoPictureError, look
from pixelize.refit.widen import refittable
from pixelize.running.pictures import picture_along, run


def refit_without_data(model: nn.Module, example_inputs: Any) -> Refit:
    """Equal phases for the last up-sampler, where that does no harm; it is measured on ``example_inputs``."""
    layers = up_samplers(model)
    order = list(layers)
    if example_inputs is not None and layers:
        order = _order(model, layers, example_inputs)
    if not order:
        return Refit(report=RepairReport(notes=["the model has no transposed convolution with a stride"]))
    last = order[-1]
    if len(layers[last].kernel_size) == 1:
        reason = "it makes waveforms, whose phases differ where there is no pattern too: that needs data"
        return Refit(report=RepairReport([RepairedSite(last, "skipped", reason)]))
    sites = [
        RepairedSite(n, "left", "only the last up-sampler can be helped without data") for n in order[:-1]
    ]
    reason = refittable(layers[last])
    name, values = f"{last}.weight" if last else "weight", {}
    if not reason and name not in named_parameters(model):
        reason = "its weight is computed from others: that needs data"
    if not reason:
        weight, reason = equalised(layers[last])
        values = {} if reason else {name: weight}
    if values and example_inputs is not None:
        reason = _worse(model, values, example_inputs, math.lcm(*layers[last].stride))
        values = {} if reason else values
    status = "skipped" if reason else "repaired"
    return Refit(
        values,
        RepairReport([*sites, RepairedSite(last, status, reason)], notes=["no data: nothing was measured"]),
    )


def _order(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> list[str]:
    """Names of layers in the order of their calls, a name once for each call.

    Raises NoPictureError if what the model makes is no picture.
    """
    order: list[str] = []
    hooks = [m.register_forward_hook(lambda *_, name=n: order.append(name)) for n, m in layers.items()]
    try:
        with torch.no_grad():
            if look(model, inputs).picture is None:
                raise NoPictureError("the model's output holds no picture")
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _worse(model: nn.Module, values: dict[str, Tensor], inputs: Any, period: int) -> str:
    """Why other values had better not be used: on the example inputs, a frequency stands out more. Empty if
    none does, or the pictures are too small to tell."""
    with torch.no_grad():
        axes, before = look(model, inputs)
        if before is None or min(before.shape[2:]) < 8 * period:
            return ""
        with replaced(model, values):
            after = picture_along(run(model, inputs), axes)
    was, now = (checkerboard_nd(y, period)["global"] for y in (before, after) if y is not None)
    rises = {f: now[f] - max(was[f], 0.0) for f in was}
    worst = max(rises, key=lambda f: rises[f])
    if rises[worst] <= 0.5:
        return ""
    return f"equal phases would raise {frequency_name(worst)} from {was[worst]:+.1f} to {now[worst]:+.1f} dB"
