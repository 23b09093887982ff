"""Walking a model whose attributes may have any name, ``modules`` and ``parameters`` among them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """Every module of a model once, itself first: ``nn.Module.modules``, whatever the model calls its own."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        waiting += [m for m in reversed(list(module._modules.values())) if m is not None]


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer of a model once."""
    seen: set[int] = set()
    for module in modules_of(model):
        for value in (*module._parameters.values(), *module._buffers.values()):
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield value


def placed(inputs: Any, model: nn.Module) -> Any:
    """``inputs`` with the tensors in it that lie on the CPU moved to where the model is.

    As they are if the model lies on the CPU, or on several devices: it then moves them itself.
    """
    devices = devices_of(model)
    if len(devices) != 1 or (device := devices.pop()).type in ("cpu", "meta"):
        return inputs
    return tree_map(
        lambda v: v.to(device) if isinstance(v, Tensor) and v.device.type == "cpu" and v.dim() else v, inputs
    )


def devices_of(model: nn.Module) -> set[torch.device]:
    """The devices of a model's parameters and buffers."""
    return {t.device for t in tensors_of(model)}


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile`` returned. Does not import the compiler, which takes as
    long as torch itself: without it nothing is compiled."""
    kind = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    return kind is not None and isinstance(module, kind)
