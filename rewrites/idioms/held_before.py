"""The weight or bias that a module had before another took its place: read, it is what it would be; what
writes to it writes to that other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.rewrites.state.capturing import capturing

_OPERATORS = frozenset(f"__i{n}__" for n in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))
_NUMBERS = frozenset({"data", "grad", "T", "mT", "H", "mH", "real", "imag"})
_SHAPE = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "__len__", "is_floating_point"}
)
_GRADIENT = Tensor.grad.__get__  # type: ignore[union-attr]
_SET_GRADIENT = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


def held_before(owner: nn.Module, name: str, value: Tensor | None, shape: Sequence[int]) -> Tensor:
    """A parameter as the module had it that ``owner`` replaced. ``value``: what it is, computed of
    ``owner``'s own; None where those do not tell.

    In functions of torch it is a tensor like any. What writes to it, or to what shares its memory
    (``weight.data``, ``weight[0]``), is taken up by ``owner`` as a state dict of the module replaced is. Of
    an unknown value there are shape, type and device: all else raises ValueError, and is NaN in a graph being
    captured.
    """
    known = value is not None
    if value is None:
        like: Tensor = owner.layer.weight  # type: ignore[assignment, union-attr]
        value = like.new_full((), torch.nan).expand(*shape)
    if capturing() or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return value
    value = value.contiguous() if known else value
    return _held(value, owner, name, value if known else None)


def _held(value: Tensor, owner: nn.Module, name: str, whole: Tensor | None) -> Tensor:
    held = value.as_subclass(HeldBefore)
    held.owner, held.attribute, held.whole = owner, name, whole
    return held


class HeldBefore(Tensor):
    """See :func:`held_before`."""

    owner: nn.Module
    attribute: str
    whole: Tensor | None
    """All of the parameter, in the same memory; None if unknown."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls ``func``. Raises ValueError for what it asks of an unknown value."""
        kwargs = kwargs or {}
        mine = _among((*args, *kwargs.values()))
        if func in _SET_GRADIENT and mine:
            wanted = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
            for parameter in _behind(mine[0]):
                parameter.requires_grad_(wanted)
            return mine[0]
        for one in mine:
            if (one.whole is None and not _asks_for_shape(func)) or func == _GRADIENT:
                raise ValueError(_refusal(one, func))
        first = (*args, *kwargs.values())[:1] if _writes(func) else ()
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            for one in _among((kwargs.get("out"), *first)):
                assert one.whole is not None
                one.owner.load_state_dict({one.attribute: one.whole.detach()}, strict=False)
            return _wrapped(result, mine)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copied and pickled as the tensor that it is."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach().clone().as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach().clone().as_subclass(Tensor)


def _among(values: Sequence[Any]) -> list[HeldBefore]:
    each = [v for value in values for v in (value if isinstance(value, (list, tuple)) else (value,))]
    return [value for value in each if isinstance(value, HeldBefore)]


def _behind(one: HeldBefore) -> list[nn.Parameter]:
    names = (f"layer.{one.attribute}", f"skip.{one.attribute}", f"phase_{one.attribute}")
    return [parameter for name, parameter in one.owner.named_parameters() if name in names]


def _asks_for_shape(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(func, "__self__", func).__name__ not in _NUMBERS
    return name in _SHAPE


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in _OPERATORS or name in ("__setitem__", "__set__") or (name[-1:] == "_" != name[-2:-1])


def _wrapped(result: Any, mine: list[HeldBefore]) -> Any:
    """``result``, or the parts of it, that share the memory of any of ``mine``, each as one of them."""
    if type(result) in (list, tuple):
        return type(result)(_wrapped(part, mine) for part in result)
    if type(result) is Tensor and result.layout == torch.strided:
        for one in mine:
            if result.untyped_storage()._cdata == one.untyped_storage()._cdata:
                return _held(result, one.owner, one.attribute, one.whole)
    return result


def _refusal(one: HeldBefore, func: Any) -> str:
    kind, layer = type(one.owner).__name__, type(one.owner.layer).__name__
    if one.whole is None:
        asked = getattr(func, "__name__", func)
        return (
            f"the {one.attribute} of a converted {kind} was asked for ({asked}), which its {layer} does "
            "not tell: leave this module out of the conversion (exclude=...) or use "
            "layer='ipixeldcl'"
        )
    return (
        f"the {one.attribute} of a converted {kind} has no gradient of its own: its {layer}'s has "
        f"(layer.{one.attribute})"
    )
