"""Watching what happens to resized pictures while a module's forward runs.

A :class:`Watch` is a torch-function mode: within it every function of torch passes by, in eager mode, while
``torch.compile`` or ``torch.export`` capture, under ``vmap``. It keeps to itself, for this call alone, which
values a resize has made, and forgets that as soon as anything else happens to them. No value is looked at, so
nothing waits for a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pixelize.rewrites.state.modes import SafeFunctionMode
from pixelize.rewrites.watching import claims
from pixelize.rewrites.watching.claims import Claim

_PLAIN = (
    bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.SymInt, torch.SymFloat, torch.SymBool,
)  # fmt: skip


class _Known(NamedTuple):
    held: Any
    """The value, while dynamo captures; otherwise a weak reference to it."""
    captured: bool
    version: int
    claim: Claim


class Watch(TorchFunctionMode):
    """Knows what of the values that a forward makes is a resized picture; see :func:`claim_of`.

    ``calls``: for a convolution called as a function, the parameter that is its weight, and what is called in
    its place.
    """

    def __init__(self, calls: tuple[tuple[Tensor, Callable[..., Any]], ...] = ()) -> None:
        super().__init__()
        self.calls = calls
        self.known: list[_Known] = []
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
        for entry in self.known:
            if _refers_to(entry, value):
                return entry.claim if entry.version == _version(value) else None
        return None

    def _operands(self, args: Any, kwargs: Any) -> list[tuple[Any, Claim | None]]:
        operands: list[tuple[Any, Claim | None]] = []
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, (Tensor, fx.Proxy)):
                    operands.append((item, self.claim(item)))
        return operands

    def _follow(
        self, func: Any, args: Any, kwargs: Any, result: Any, before: list[tuple[Any, Claim | None]]
    ) -> None:
        known = [pair for pair in before if pair[1] is not None]
        claim = None
        if func in claims.RESIZES:
            claim = claims.resized(func, args, kwargs, result, before[0][1] if before else None)
        elif known:
            claim = self._carried(func, args, kwargs, result, before)
        if known and claim is None and func not in claims.FRESH:
            if func in claims.POINTERS or not _is_torch(result):
                self.known = []  # memory of its own kind, an array's say, through which no write is seen
            elif not isinstance(result, _PLAIN):
                self.exposed = True  # a view, maybe, through which what is known can be written to
        written = kwargs.get("out")
        if written is None and before:
            # what writes to its first argument, which may be a list, gives that back, or nothing
            first = before[0][0]
            if result is None or (result is first and func not in claims.ALIASES) or _is_in_place(func):
                written = args[0] if args else first
        if written is not None:
            tensors = written if isinstance(written, (list, tuple)) else [written]
            touched = any(self._is_known(tensor) for tensor in tensors)
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
            if claim.mode != "nearest" and _is_of_another_type(result, before[0][0]):
                return None  # numbers between others were rounded on the way
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
        return any(_refers_to(entry, value) for entry in self.known)

    def _keep(self, value: Any, claim: Claim) -> None:
        others = [entry for entry in self.known if not _refers_to(entry, value)]
        captured = torch.compiler.is_dynamo_compiling()
        held = value if captured else weakref.ref(value)
        version = _version(value)
        self.known = [*others, _Known(held, captured, version, claim)] if version >= 0 else others


class EagerWatch(Watch, SafeFunctionMode):
    """The same where nothing is captured; dynamo lets no mode with an ``__exit__`` of its own be entered."""


TRANSPOSED = claims.functions([f"conv_transpose{n}d" for n in (1, 2, 3)])
CONVOLUTIONS = TRANSPOSED | claims.functions([f"conv{n}d" for n in (1, 2, 3)])


def _named(kwargs: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in kwargs.items() if key != "input"}


def _drops(p: float = 0.5, training: bool = True, inplace: bool = False, **other: Any) -> bool:
    training = other.get("train", training)
    return bool(training) and p != 0


def _is_in_place(func: Any) -> bool:
    # dynamo's graph tells of these, and dynamo knows no hash of some
    return not torch.compiler.is_dynamo_compiling() and func in claims.IN_PLACE


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, fx.Proxy))


def _is_of_another_type(result: Any, value: Any) -> bool:
    return isinstance(result, Tensor) and isinstance(value, Tensor) and result.dtype != value.dtype


def _is_torch(result: Any) -> bool:
    """Whether a result is of torch's or Python's plain types, or some such."""
    if isinstance(result, (tuple, list)):
        return all(_is_torch(item) for item in result)
    return isinstance(result, (Tensor, fx.Proxy, *_PLAIN))


def _refers_to(entry: _Known, value: Any) -> bool:
    # what dynamo has captured says nothing of the values in the code that it left to run after it
    if entry.captured != torch.compiler.is_dynamo_compiling():
        return False
    return entry.held is value if entry.captured else entry.held() is value


def _version(value: Any) -> int:
    """How often a tensor was written to, by whomever; 0 where that is not counted, -1 where it cannot be
    told."""
    if torch.compiler.is_dynamo_compiling():
        from pixelize.rewrites.watching.compiled import writes_to  # brings in dynamo

        return writes_to(value)
    if not isinstance(value, Tensor) or value.is_inference():
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
