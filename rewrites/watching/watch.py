"""Watching what happens to resized pictures while a module's forward runs.

A :class:`Watch` is a torch-function mode: within it every function of torch passes by, in eager mode, while
``torch.compile`` or ``torch.export`` capture, under ``vmap``. It keeps to itself, for this call alone, which
values a resize has made, and forgets that as soon as anything else happens to them. No value is looked at, so
nothing waits for a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pixelize.rewrites.watching import claims
from pixelize.rewrites.watching.claims import Claim


class Watch(TorchFunctionMode):
    """Knows what of the values that a forward makes is a resized picture; see :func:`claim_of`.

    ``calls``: for a convolution called as a function, the parameter that is its weight, and what is called in
    its place.
    """

    def __init__(self, calls: tuple[tuple[Tensor, Callable[..., Any]], ...] = ()) -> None:
        super().__init__()
        self.calls = calls
        self.known: list[tuple[Any, int, Claim]] = []
        self.exposed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.calls and func in CONVOLUTIONS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            for parameter, replacement in self.calls:
                if parameter is weight:
                    return replacement(self, func, args, kwargs)
        if not self.known and func not in claims.RESIZES:
            return func(*args, **kwargs)
        before = self._operands(args, kwargs)
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, result, before)
        return result

    def claim(self, value: Any) -> Claim | None:
        """What is known of ``value``; None if nothing is."""
        for held, version, claim in self.known:
            if _refers_to(held, value):
                return claim if version == _version(value) else None
        return None

    def _operands(self, args: Any, kwargs: Any) -> list[tuple[Any, Claim | None]]:
        found: list[tuple[Any, Claim | None]] = []
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, (Tensor, fx.Proxy)):
                    found.append((item, self.claim(item)))
        return found

    def _follow(
        self, func: Any, args: Any, kwargs: Any, result: Any, before: list[tuple[Any, Claim | None]]
    ) -> None:
        known = [pair for pair in before if pair[1] is not None]
        claim = None
        if func in claims.RESIZES:
            claim = claims.resized(func, args, kwargs, result, before[0][1] if before else None)
        elif known:
            claim = self._carried(func, args, kwargs, result, before)
        if known and claim is None and func not in claims.FRESH and _is_tensor(result):
            self.exposed = True  # the result may be a view, through which what is known can be written to
        target = kwargs.get("out")
        if target is None and before:
            # what writes to its argument gives that back, or nothing
            first = before[0][0]
            target = first if result is None or (result is first and func not in claims.ALIASES) else None
        if target is not None:
            touched = self._is_known(target)
            if (touched and claim is None) or (not touched and self.exposed):
                self.known = []
        if claim is not None:
            self._keep(result, claim)

    def _carried(
        self, func: Any, args: Any, kwargs: Any, result: Any, before: list[tuple[Any, Claim | None]]
    ) -> Claim | None:
        claim = before[0][1]
        if func in claims.CONCATENATIONS:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return claims.concatenated(result, before, dim)
        if func in claims.POINTWISE:
            return claims.pointwise(result, before)
        if claim is None or not _is_tensor(result):
            return None
        if func in claims.ALIASES:
            return claim if len(before) == 1 or func in claims.TYPE_AS else None
        if func in claims.PADS:
            return claims.padded(result, claim, *args[1:], **_named(kwargs, "pad", "pads"))
        if func in claims.DROPOUTS:
            return claim if not _drops(*args[1:], **kwargs) else None
        if func in claims.CHANNELWISE:
            if not claims.movable(claim) or (claim.mode != "nearest" and func in claims.KINKED):
                return None
            return claim
        if func in claims.ITEMS:
            return claims.sliced(result, claim, args[1])
        return None

    def _is_known(self, value: Any) -> bool:
        return any(_refers_to(held, value) for held, _, _ in self.known)

    def _keep(self, value: Any, claim: Claim) -> None:
        others = [entry for entry in self.known if not _refers_to(entry[0], value)]
        held = value if torch.compiler.is_compiling() else weakref.ref(value)
        self.known = [*others, (held, _version(value), claim)]


TRANSPOSED = claims.functions([f"conv_transpose{n}d" for n in (1, 2, 3)])
CONVOLUTIONS = TRANSPOSED | claims.functions([f"conv{n}d" for n in (1, 2, 3)])


def _named(kwargs: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in kwargs.items() if key != "input"}


def _drops(p: float = 0.5, training: bool = True, inplace: bool = False, **other: Any) -> bool:
    training = other.get("train", training)
    return bool(training) and p != 0


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, fx.Proxy))


def _refers_to(held: Any, value: Any) -> bool:
    return held is value if torch.compiler.is_compiling() else held() is value


def _version(value: Any) -> int:
    """How often a tensor was written to, by whomever; 0 where that is not counted."""
    if torch.compiler.is_compiling() or not isinstance(value, Tensor) or value.is_inference():
        return 0
    return value._version


def claim_of(value: Any) -> Claim | None:
    """What the watches that are on know of ``value``, None if none of them knows anything."""
    for level in range(torch._C._len_torch_function_stack() - 1, -1, -1):
        mode = torch._C._get_function_stack_at(level)
        if isinstance(mode, Watch):
            claim = mode.claim(value)
            if claim is not None:
                return claim
    return None
