"""What lies between an up-sampler and the pictures a model gives: captured, and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pixelize.adapters import call, find
from pixelize.running.outputs import tensors


def pictures_of(output: Any) -> Tensor | None:
    """The picture in a model's output: its largest floating-point tensor (N, C, H, W), or (N, H, W) as one
    channel.

    None when there is no such tensor: logits of a classifier, a feature vector.
    """
    found = [t[:, None] if t.dim() == 3 else t for t in tensors(output) if t.dim() in (3, 4)]
    found = [t for t in found if min(t.shape[-2:]) > 1]
    return max(found, key=lambda t: t.shape[-2] * t.shape[-1], default=None)


def run(model: nn.Module, inputs: Any) -> Any:
    """``model`` on one element of data, in the way of its library's adapter if there is one.

    What the model writes into its inputs (RCAN's ``x *= 255``) does not reach the data.
    """
    adapter = find(model)
    own = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    return (adapter.run if adapter else call)(model, own)


@dataclass(frozen=True)
class Passage:
    """One run: the up-sampler's output (N, C_out, H', W') and the picture (N, C, H, W)."""

    made: Tensor
    picture: Tensor


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def without_pattern(
    model: nn.Module, layer: nn.Module, inputs: Any, clean: Callable[[Tensor], Tensor]
) -> Tensor:
    """The picture with the layer's output replaced by ``clean`` of it: what the model does without its
    pattern."""
    with torch.no_grad(), _hooked(layer, lambda module, args, output: clean(output)):
        return picture_of(run(model, inputs))


def calls(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any
) -> tuple[list[str], dict[str, Passage]]:
    """Names of ``layers`` in the order of their calls, a name once for each call, and the last passage of
    each."""
    order: list[str] = []
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            order.append(name)
            seen[name] = output

        return hook

    handles = [layer.register_forward_hook(look(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            picture = picture_of(run(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return order, {name: Passage(made, picture) for name, made in seen.items()}


class NoPicture(Exception):
    """The model's output has no picture in it."""


def picture_of(output: Any) -> Tensor:
    picture = pictures_of(output)
    if picture is None:
        raise NoPicture
    return picture
