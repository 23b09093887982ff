"""Walking a model whose attributes may have any name, ``modules`` and ``parameters`` among them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


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


def devices_of(model: nn.Module) -> set[torch.device]:
    """The devices of a model's parameters and buffers."""
    return {t.device for t in tensors_of(model)}
