"""What is kept on a module and on a model: the one place that knows how.

A converted module keeps a :class:`Record`; the model keeps the reports of what was done to it. All of it is
copied with the model and takes no part in its state dict.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from pixelize.inheritance.inherit import Design
from pixelize.layers.dependency_kernels import PixelDependencies
from pixelize.rewrites import Site, state_of
from pixelize.rewrites.state.modules import modules_of, tensors_of
from pixelize.rewrites.state.splice import State

_RECORD, _REPORT, _REPAIR = "_pixelize_record", "_pixelize_report", "_pixelize_repair"


@dataclass(frozen=True)
class Record:
    """What a converted module remembers: the site it stands for, its layer and design, and what was there
    before.

    ``origin`` is None where the original weights are not at hand (a loaded model). ``fingerprint`` tells
    whether the layer was trained. ``inherited`` names the parameters and buffers that are the original's own,
    the same tensors.
    """

    site: Site
    layer: str
    design: Design
    origin: State | None
    fingerprint: tuple[float, ...]
    inherited: frozenset[str] = frozenset()


def new_record(site: Site, layer: str, design: Design, origin: State | None, module: nn.Module) -> Record:
    """The record of ``module``, which is about to take the place of what ``origin`` describes."""
    inherited: set[str] = set()
    if origin is not None:
        for registry in ("_parameters", "_buffers"):
            held = origin[1].get(registry, {})
            mine = module.__dict__[registry]
            inherited |= {k for k, v in held.items() if v is not None and mine.get(k) is v}
    return Record(site, layer, design, origin, fingerprint(module), frozenset(inherited))


def record_of(module: nn.Module) -> Record | None:
    """The record of a converted module; None for any other."""
    return module.__dict__.get(_RECORD)


def remember(module: nn.Module, record: Record) -> None:
    """Keeps ``record`` on a module."""
    module.__dict__[_RECORD] = record


def forget(model: nn.Module) -> None:
    """Takes every record and the conversion's report off a model: nothing of it is converted from now on."""
    for module in modules_of(model):
        for key in (_RECORD, _REPORT):
            module.__dict__.pop(key, None)


def kept_report(model: nn.Module) -> Any:
    """The report of what the last conversion did to a model, or None."""
    return model.__dict__.get(_REPORT)


def keep_report(model: nn.Module, report: Any) -> None:
    """Keeps the report of a conversion on a model."""
    model.__dict__[_REPORT] = report


def kept_repair(model: nn.Module) -> Any:
    """The report of the last repair of a model, or None."""
    return model.__dict__.get(_REPAIR)


def keep_repair(model: nn.Module, report: Any) -> None:
    """Keeps the report of a repair on a model."""
    model.__dict__[_REPAIR] = report


def converted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``model`` that a conversion put there, by qualified name, shared ones once."""
    return {name: m for name, m in model.named_modules() if _RECORD in m.__dict__}


def fingerprint(module: nn.Module) -> tuple[float, ...]:
    """Two numbers for each parameter that tell a trained module from an untrained one, whatever its
    precision.
    """
    sums: list[float] = []
    for p in module.parameters():
        if p.device.type == "meta":
            continue
        values = p.detach().float()
        sums += [float(values.sum()), float(torch.linalg.vector_norm(values))]
    return tuple(sums)


def origin_of(module: nn.Module) -> State:
    """What a module is, to be kept in the record of what takes its place."""
    # An old norm's weight has a gradient history, which nothing that keeps it could be copied with; the norm
    # computes it anew.
    kind, state = state_of(module)
    return kind, {k: v.detach() if isinstance(v, Tensor) and not v.is_leaf else v for k, v in state.items()}


def unchanged_since(record: Record, module: nn.Module) -> bool:
    """Whether a module's parameters are, to rounding, those that its record was made with."""
    precise = all(p.dtype.itemsize >= 4 for p in module.parameters())
    a, b, tolerance = record.fingerprint, fingerprint(module), 1e-5 if precise else 1e-2
    # a sum and a norm for each parameter: the second sets the scale for both
    return len(a) == len(b) and all(
        abs(a[i] - b[i]) <= tolerance * max(a[i | 1], 1e-12) and abs(a[i] - b[i]) < float("inf")
        for i in range(len(a))
    )


def origin_now(record: Record, module: nn.Module) -> State:
    """What ``module`` was before its conversion, on the device, in the type and in the mode that it has now.

    What a record keeps is no part of the model and does not follow ``.to()`` or ``.half()``. Where nothing
    has moved the tensors are the original's own; the record is not changed.
    """
    assert record.origin is not None
    kind, held = record.origin
    like = next((p for p in module.parameters() if p.is_floating_point()), None)

    def moved(value: Any) -> Any:
        if like is None or not isinstance(value, Tensor) or is_lazy(value):
            return value
        dtype = like.dtype if value.is_floating_point() else value.dtype
        if (value.device, value.dtype) == (like.device, dtype):
            return value
        there = value.detach().to(like.device, dtype)
        return nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there

    state = {key: moved(value) for key, value in held.items()}
    for registry in ("_parameters", "_buffers"):
        present = module.__dict__[registry]
        state[registry] = {
            key: present[key] if key in record.inherited else moved(value)
            for key, value in held[registry].items()
        }
    state["_modules"] = {
        key: child
        if child is None or module._modules.get(key) is child or all(moved(t) is t for t in tensors_of(child))
        else copy.deepcopy(child).to(like.device, like.dtype)  # type: ignore[union-attr]
        for key, child in held["_modules"].items()
    }
    state["training"] = module.training
    return kind, state


def original(record: Record) -> nn.Module:
    """The module that a conversion replaced, built again of its record: another object with the same
    parameters.
    """
    assert record.origin is not None
    kind, state = record.origin
    module: nn.Module = object.__new__(kind)
    module.__dict__ = dict(state)
    return module


def inner_layer(module: nn.Module) -> _ConvNd:
    """The layer of a converted module that does its work: itself, or the one that it holds."""
    if isinstance(module, PixelDependencies):
        return module  # type: ignore[return-value]
    inner = (m for m in module.modules() if isinstance(m, _ConvTransposeNd))
    return next(inner, module)  # type: ignore[return-value]


def refresh(module: nn.Module) -> None:
    """Takes the present parameters for untrained: what a calibration changed, ``revert`` can undo."""
    record = module.__dict__[_RECORD]
    module.__dict__[_RECORD] = replace(record, fingerprint=fingerprint(module))
