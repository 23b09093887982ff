"""What takes the place of a convolution: a module around the layer that makes its up-sampled part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from pixelize.rewrites.idioms.held_before import HeldBefore, held_before
from pixelize.rewrites.state.subclass import combined

_REGISTRIES = ("_parameters", "_buffers", "_modules")


class MadeFor(nn.Module):
    """Takes the place of a module: what its layer was made for, the attributes in ``made_for``, stays."""

    made_for: ClassVar[frozenset[str]]

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises AttributeError for what cannot be changed any more."""
        if name in self.made_for and "_combined" in vars(type(self)) and self._is_other(name, value):
            raise AttributeError(
                f"{name} of a converted {type(self).__name__} cannot be changed: its layer was made for what "
                "it was. pixelize.revert(model), change it, and convert again"
            )
        super().__setattr__(name, value)

    def _is_other(self, name: str, value: Any) -> bool:
        now = getattr(self, name, None)
        return now is not value and (isinstance(value, Tensor) or isinstance(now, Tensor) or now != value)


class ConvReplacement(MadeFor):
    """Takes the place of a convolution; ``layer`` does its up-sampling."""

    layer: nn.Module
    made_for = frozenset(
        {"weight", "bias", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"}
        | {"_conv_forward"}
    )

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """``type(module)(...)`` makes what the class of the module replaced makes: so libraries make layers
        beside it (LoRA's)."""
        made_of = vars(cls).get("_combined")
        if made_of is None or not (arguments or named):
            return super().__new__(cls)
        return made_of[1](*arguments, **named)

    @property
    def weight(self) -> Tensor:
        """The convolution's weight, for whom else reads it: what the layer's still is."""
        return held_before(self, "weight", *self._weight_before())

    @property
    def bias(self) -> Tensor | None:
        """The convolution's bias."""
        return self.layer.bias  # type: ignore[return-value]

    def _weight_before(self) -> tuple[Tensor | None, Sequence[int]]:
        """What the layer tells of the convolution's weight, and that weight's shape."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises AttributeError for what cannot be changed any more. ``conv.weight *= 2`` has written already
        when it sets the attribute to what it is."""
        held = isinstance(value, HeldBefore) and value.owner is self and value.attribute == name
        if not held and not (name == "bias" and value is not None and value is self.bias):
            super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by ``torch.jit.script``, which cannot express what is checked in each call: raises
        ValueError."""
        raise ValueError(
            f"torch.jit.script cannot take a converted {type(self).__name__} after a resize or before "
            "a shuffle: use torch.export, torch.jit.trace or ONNX, or pixelize.revert the model first"
        )


def dressed(new: nn.Module, module: nn.Module) -> nn.Module:
    """``new``, which is to take the place of ``module``, as one of its kind.

    Of the same class (with the methods of ``new`` before its own), with its attributes, its hooks, and what
    parameters, buffers and children it has beside weight and bias.
    """
    for name, value in module.__dict__.items():
        if name in _REGISTRIES:
            mine = new.__dict__[name]
            for key, held in value.items():
                if key not in ("weight", "bias"):
                    mine.setdefault(key, held)
        elif "hooks" in name or name == "_is_full_backward_hook" or name not in new.__dict__:
            new.__dict__[name] = value
    new.__class__ = combined(type(new), type(module))
    return new
