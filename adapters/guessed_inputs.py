"""Example inputs that suit a model's device and type."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pixelize.adapters.adapter import call
from pixelize.rewrites.seeing.apart import apart, copied_inputs
from pixelize.rewrites.seeing.bounded import Bounded, CostlyError


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
    return not isinstance(_tried(model, [inputs]), str)


def first_that_runs(model: nn.Module, candidates: list[Any]) -> Any:
    """The first of ``candidates`` that the model takes, at a cost that a guess is worth. Raises ValueError if
    it takes none."""
    answer = _tried(model, candidates)
    if isinstance(answer, str):
        raise ValueError(
            f"no example inputs are known for this {type(model).__name__}{answer}: "
            "pass example_inputs, what its forward takes"
        )
    return candidates[answer]


def _tried(model: nn.Module, candidates: list[Any]) -> int | str:
    """The place of the first candidate that the model takes; what is to be said where there is none."""
    if any(is_lazy(p) for p in model.parameters()):  # running it would initialise it
        return ""

    def look(copy: nn.Module) -> int | str:
        told = ""
        for place, inputs in enumerate(candidates):
            try:
                with Bounded():
                    call(copy, copied_inputs(inputs))
                return place
            except CostlyError as error:
                told = f" (a guess was not run: {error})"
            except Exception:  # a stranger's forward may raise anything
                continue
        return told

    return apart(model, look)
