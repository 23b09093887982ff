"""What lies between an up-sampler and the pictures a model gives: captured, left out, and its slope."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.adapters import call
from pixelize.running import tensors

_ELEMENTWISE_PROBES = 16


def pictures_of(output: Any) -> Tensor | None:
    """The picture in a model's output: its largest floating-point tensor (N, C, H, W), or (N, H, W) as one
    channel.

    None when there is no such tensor: logits of a classifier, a feature vector.
    """
    found = [t[:, None] if t.dim() == 3 else t for t in tensors(output) if t.dim() in (3, 4)]
    found = [t for t in found if min(t.shape[-2:]) > 1]
    return max(found, key=lambda t: t.shape[-2] * t.shape[-1], default=None)


@dataclass(frozen=True)
class Passage:
    """One run: the up-sampler's input (N, C_in, h, w) and output (N, C_out, H', W'), and the picture (N, C,
    H, W)."""

    x: Tensor
    made: Tensor
    picture: Tensor
    slope: Tensor | None = None


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def pass_through(model: nn.Module, layer: nn.Module, inputs: Any, *, sloped: bool = False) -> Passage:
    """Run ``model`` (in evaluation mode) and see what passes ``layer``; with ``sloped``, d picture / d made
    too.

    The slope is that of an elementwise tail (see :func:`is_elementwise`): one number for each pixel.
    """
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        seen["x"], seen["made"] = args[0].detach(), output.detach()
        if not sloped:
            return None
        torch.set_grad_enabled(True)  # from here on: what comes before the layer needs no graph
        seen["leaf"] = output.detach().requires_grad_()
        return seen["leaf"].clone()

    with torch.no_grad(), _hooked(layer, look):
        picture = _picture(call(model, inputs))
        slope = torch.autograd.grad(picture.sum(), seen["leaf"])[0] if sloped else None
    return Passage(seen["x"], seen["made"], picture.detach(), slope)


def is_elementwise(model: nn.Module, layer: nn.Module, inputs: Any, seed: int = 0) -> bool:
    """Whether every pixel of the picture depends on the same pixel of the layer's output and on no other.

    So it is for the last layer of a generator with ``tanh`` after it, or nothing. Tried at a few pixels.
    """
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        seen["leaf"] = output.detach().requires_grad_()
        return seen["leaf"].clone()

    with torch.no_grad(), _hooked(layer, look):
        picture = _picture(call(model, inputs))
        if picture.shape != seen["leaf"].shape or not picture.requires_grad:
            return False
        generator = torch.Generator().manual_seed(seed)
        at = torch.randperm(picture.numel(), generator=generator)[:_ELEMENTWISE_PROBES].to(picture.device)
        chosen = torch.zeros(picture.numel(), device=picture.device, dtype=picture.dtype)
        chosen[at] = 1
        (grad,) = torch.autograd.grad(picture, seen["leaf"], chosen.view_as(picture))
    return not bool((grad.flatten()[chosen == 0] != 0).any())


def without_pattern(
    model: nn.Module, layer: nn.Module, inputs: Any, clean: Callable[[Tensor], Tensor]
) -> Tensor:
    """The picture with the layer's output replaced by ``clean`` of it: what the model does without its
    pattern."""
    with torch.no_grad(), _hooked(layer, lambda module, args, output: clean(output)):
        return _picture(call(model, inputs))


def calls(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any
) -> tuple[list[str], dict[str, Passage]]:
    """Names of ``layers`` in the order of their calls, a name once for each call, and the last passage of
    each."""
    order: list[str] = []
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            order.append(name)
            seen[name] = (args[0], output)

        return hook

    handles = [layer.register_forward_hook(look(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            picture = _picture(call(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return order, {name: Passage(x, made, picture) for name, (x, made) in seen.items()}


class NoPicture(Exception):
    """The model's output has no picture in it."""


def _picture(output: Any) -> Tensor:
    picture = pictures_of(output)
    if picture is None:
        raise NoPicture
    return picture
