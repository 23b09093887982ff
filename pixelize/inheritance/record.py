"""What a converted module remembers: the one place that knows what is kept on a module.

``record_of(module)`` is None for a module that no conversion put there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pixelize.inheritance.inherit import Design
from pixelize.rewrites import Site, state_of
from pixelize.rewrites.state.splice import State


@dataclass(frozen=True)
class Record:
    """What a converted module remembers: the site it stands for, its layer and design, and what was there
    before.

    ``origin`` is None where the original weights are not at hand (a loaded model); ``fingerprint`` tells
    whether the layer was trained.
    """

    site: Site
    layer: str
    design: Design
    origin: State | None
    fingerprint: tuple[float, ...]


def converted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``model`` that a conversion put there, by qualified name, shared ones once."""
    return {name: m for name, m in model.named_modules() if "_pixelize_record" in m.__dict__}


def remember(module: nn.Module, record: Record) -> None:
    """Keeps ``record`` on a module that is about to take another's place."""
    module.__dict__["_pixelize_record"] = record


def fingerprint(module: nn.Module) -> tuple[float, ...]:
    """Two numbers for each parameter that tell a trained module from an untrained one, whatever its
    precision.
    """
    found: list[float] = []
    for p in module.parameters():
        if p.device.type == "meta":
            continue
        values = p.detach().float()
        found += [float(values.sum()), float(torch.linalg.vector_norm(values))]
    return tuple(found)


def origin_of(module: nn.Module) -> State:
    # An old norm's weight has a gradient history, which nothing that keeps it could be copied with; the norm
    # computes it anew.
    kind, state = state_of(module)
    return kind, {k: v.detach() if isinstance(v, Tensor) and not v.is_leaf else v for k, v in state.items()}


def same_fingerprint(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
    # a sum and a norm for each parameter: the second sets the scale for both
    return len(a) == len(b) and all(
        abs(a[i] - b[i]) <= tolerance * max(a[i | 1], 1e-12) and abs(a[i] - b[i]) < float("inf")
        for i in range(len(a))
    )


def original(record: Record) -> nn.Module:
    """The module that a conversion replaced, built again of its record: another object with the same
    parameters.
    """
    assert record.origin is not None
    kind, state = record.origin
    module: nn.Module = object.__new__(kind)
    module.__dict__ = dict(state)
    return module


def inner_layer(module: nn.Module) -> nn.ConvTranspose2d:
    """The up-sampling layer of a converted module: itself, or the one that it holds."""
    return next(m for m in module.modules() if isinstance(m, nn.ConvTranspose2d))


def refresh(module: nn.Module) -> None:
    # what calibration changed is no training: revert still knows the way back
    record: Record = module.__dict__["_pixelize_record"]
    module.__dict__["_pixelize_record"] = replace(record, fingerprint=fingerprint(module))
