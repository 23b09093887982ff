"""The one transaction: what is done to a model inside it either ends well or is undone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pixelize.rewrites.state import random_state
from pixelize.rewrites.state.all_or_nothing import undone_on_failure
from pixelize.rewrites.state.modules import devices_of, modules_of, tensors_of

_CONTAINERS = (dict, OrderedDict, list, set)  # what attributes of these types hold is noted, one level deep


class Change:
    """Whatever is raised inside (``KeyboardInterrupt`` too), the model is as it was when it leaves this.

        with Change(model) as transaction:
            transaction.will_write(model.up.weight)
            model.up.weight.zero_()
            return model

    Returning from inside makes the end of the block the last thing that happens. Of public calls, which are
    :func:`~pixelize.rewrites.state.all_or_nothing.all_or_nothing`.

    Of every module its class, its attributes and its registries (parameters, buffers, submodules, hooks), and
    of every parameter whether it is trained and its gradient, are noted as they are: nothing is copied.
    Copied are the values of buffers, which any forward may write, and of ``written``, the parameters that
    will be changed in place. The state of the random number generators is kept too,
    and whether gradients are recorded.
    """

    def __init__(self, model: nn.Module, written: Iterable[Tensor] = ()) -> None:
        self._modules = [
            (module, type(module), module.__dict__, _copied(module.__dict__)) for module in modules_of(model)
        ]
        self._trained = [
            (t, t.requires_grad, t.grad) for t in tensors_of(model) if t.is_leaf and not is_lazy(t)
        ]
        held = [b for module in modules_of(model) for b in module._buffers.values() if b is not None]
        self._values: list[tuple[Tensor, Tensor]] = []
        for tensor in held:
            self.will_write(tensor)
        for tensor in written:
            self.will_write(tensor)
        self._random = random_state.keep(devices_of(model))
        self._gradients = torch.is_grad_enabled()

    def will_write(self, tensor: Tensor) -> None:
        """Keeps the present values of a tensor that is about to be changed in place."""
        if not is_lazy(tensor) and not tensor.is_meta:
            self._values.append((tensor, tensor.detach().clone()))

    def undo(self) -> None:
        """Makes the model what it was. Can be called again if it was interrupted."""
        for module, kind, attributes, held in self._modules:
            object.__setattr__(module, "__dict__", attributes)
            object.__setattr__(module, "__class__", kind)
            for name in attributes.keys() - held.keys():
                del attributes[name]
            for name, (value, content) in held.items():
                attributes[name] = value
                _refill(value, content)
        for tensor, required, gradient in self._trained:
            tensor.requires_grad_(required)
            tensor.grad = gradient
        for tensor, value in self._values:
            tensor.detach().copy_(value)
        self._random()
        torch.set_grad_enabled(self._gradients)

    def __enter__(self) -> Change:
        self.forget = undone_on_failure(self.undo)  # when all is done an interrupt may come yet
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.undo()
            self.forget()


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and what it holds at present where that may change without the attribute changing."""
    return {
        name: (value, value.copy() if type(value) in _CONTAINERS else None)
        for name, value in attributes.items()
    }


def _refill(value: Any, content: Any) -> None:
    if content is None:
        return
    if isinstance(value, list):
        value[:] = content
        return
    value.clear()
    value.update(content)
