"""Example inputs that suit a model's device and type."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pixelize.adapters.adapter import call
from pixelize.rewrites.seeing.apart import apart, copied_inputs


def place_of(model: nn.Module) -> dict[str, Any]:
    """The device and floating-point type of a model's weights, as keyword arguments of ``torch.empty``."""
    for t in chain(model.parameters(), model.buffers()):
        if t.is_floating_point():
            return {"device": t.device, "dtype": t.dtype}
    return {"device": torch.device("cpu"), "dtype": torch.get_default_dtype()}


def noise(model: nn.Module, *shape: int) -> Tensor:
    """A tensor of that shape that looks like data: smooth to no degree, of unit variance, the same at each
    call."""
    place = place_of(model)
    if place["device"].type == "meta":
        return torch.empty(shape, **place)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(**place)


def runs(model: nn.Module, inputs: Any) -> bool:
    """Whether the model takes these inputs: a copy of it is run in evaluation mode."""
    if any(is_lazy(p) for p in model.parameters()):  # running it would initialise it
        return False
    with apart(model) as copy:
        return _runs(copy, inputs)


def _runs(model: nn.Module, inputs: Any) -> bool:
    try:
        call(model, copied_inputs(inputs))
        return True
    except Exception:  # a stranger's forward may raise anything
        return False


def first_that_runs(model: nn.Module, candidates: list[Any]) -> Any:
    """The first of ``candidates`` that the model takes. Raises ValueError if it takes none."""
    if not any(is_lazy(p) for p in model.parameters()):
        with apart(model) as copy:
            for inputs in candidates:
                if _runs(copy, inputs):
                    return inputs
    raise ValueError(
        f"no example inputs are known for this {type(model).__name__}: "
        "pass example_inputs, what its forward takes"
    )
