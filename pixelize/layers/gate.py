"""From iPixelDCL to PixelDCL by degrees: the input gate scales what all phases but the first see of the
input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pixelize.errors import ArgumentError, PixelizeError
from pixelize.layers.dependency_kernels import InputGated
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change


def gate_of(layer: InputGated) -> float:
    """The layer's input gate, from 0 (PixelDCL) to 1 (iPixelDCL)."""
    return 1.0 if layer.input_gate is None else float(layer.input_gate)


def set_gate(layer: InputGated, g: float) -> None:
    """Sets one layer's gate. A tensor that is filled in place: a compiled step is not compiled again as ``g``
    moves.
    """
    if g == 1.0:
        layer.input_gate = None
    elif layer.input_gate is None:
        layer.input_gate = torch.tensor(g, device=layer.weight.device, dtype=torch.float32)
    else:
        layer.input_gate.fill_(g)


@all_or_nothing
def set_input_gate(model: nn.Module, g: float) -> nn.Module:
    """Sets the input gate of every iPixelDCL in ``model``, in place: 1 is iPixelDCL (eq. 2), 0 is PixelDCL
    (eq. 3).

    Returns ``model``. Raises ArgumentError if ``g`` is outside [0, 1], PixelizeError if there is no
    iPixelDCL.
    """
    if not 0.0 <= g <= 1.0:
        raise ArgumentError(f"the input gate is {g}; it must lie between 0 (PixelDCL) and 1 (iPixelDCL)")
    layers = [m for m in model.modules() if isinstance(m, InputGated)]
    if not layers:
        raise PixelizeError(
            f"this {type(model).__name__} has no iPixelDCL; convert it with layer='ipixeldcl' first"
        )
    with Change(nn.ModuleList(layers)):
        for layer in layers:
            set_gate(layer, float(g))
        return model


class GateSchedule:
    """Moves the input gate of a model from 1 to 0 over a training: step it as a learning-rate scheduler is
    stepped.

        schedule = GateSchedule(model, steps=1000)
        for batch in data:
            ...
            optimizer.step()
            schedule.step()
        pixelize.harden(model)

    The gate is 1 for the share ``start`` of the steps, falls as half a cosine to 0 at the share ``end``, and
    stays there: the rest of the training is that of the PixelDCL that the model will be.

    Raises ArgumentError unless steps > 0 and 0 <= start < end <= 1, PixelizeError if the model has no
    iPixelDCL.
    """

    def __init__(self, model: nn.Module, steps: int, *, start: float = 0.1, end: float = 0.6) -> None:
        if steps < 1 or not 0.0 <= start < end <= 1.0:
            raise ArgumentError(
                f"steps is {steps}, start {start} and end {end}: there must be steps, and 0 <= start < end "
                "<= 1"
            )
        self.model, self.steps, self.start, self.end = model, steps, start, end
        self.taken = 0
        set_input_gate(model, self.gate)

    @property
    def gate(self) -> float:
        """The gate now, from 1 to 0."""
        share = (self.taken / self.steps - self.start) / (self.end - self.start)
        return (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2

    def step(self) -> float:
        """Moves the gate by one step and returns it."""
        self.taken += 1
        set_input_gate(self.model, self.gate)
        return self.gate

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint: the model's gate is set too."""
        self.taken = int(state["taken"])
        set_input_gate(self.model, self.gate)
