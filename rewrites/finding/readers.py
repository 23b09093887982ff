"""Who else reads a convolution's weight: what takes the convolution's place has it in another layout."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

from pixelize.rewrites.graph.flow import Flow

_MAKING = ("__init__", "init", "reset")
"""In the names of methods that make a model: they have run."""


def weight_readers(model: nn.Module, flow: Flow, names: tuple[str, ...]) -> str | None:
    """Why the weight of the convolution that goes by ``names`` must stay as it is, or None if it need not.

    Those who read it in this run are seen; for those who do under another flag or in another mode, such as
    training, the methods of the modules around it are read.
    """
    for name in names:
        prefix, _, last = name.rpartition(".")
        parent = model.get_submodule(prefix) if name else None
        if last == "base_layer" and hasattr(parent, "merge"):
            return f"{type(parent).__name__} may merge its adapter into the weight: merge and unload it first"
    states = {f"{name}.weight" if name else "weight" for name in names}
    for node in flow.ops:
        if node.meta.get("state") not in states:
            continue
        for user in node.users:
            if str(user.meta.get("owner")) not in names:
                return f"its weight is read by {user.meta.get('owner') or type(model).__name__} too"
    for name in names:
        for reader in _around(model, name):
            if method := _reading(type(reader), tuple(name.split(".")[-2:])):  # type: ignore[arg-type]
                return f"its weight is read by {type(reader).__name__}.{method} too"
    return None


def _around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules that hold the one of that name, of somebody's own classes."""
    parts = name.split(".") if name else []
    for count in range(len(parts)):
        holder = model.get_submodule(".".join(parts[:count]))
        if not type(holder).__module__.startswith("torch.nn."):
            yield holder


@lru_cache(4096)
def _reading(kind: type, path: tuple[str, ...]) -> str | None:
    """The name of a method of a class in which ``<anything>.child.weight`` is read, or of a child that is
    counted ``<anything>.parent[<any>].weight``. ``path``: the child's name, after that of its parent."""
    for cls in kind.__mro__:
        if cls.__module__.startswith("torch.nn.") or cls is object:
            continue
        for name, method in vars(cls).items():
            function = getattr(method, "__func__", method)
            function = getattr(function, "__wrapped__", function)
            if not isinstance(function, FunctionType) or any(part in name for part in _MAKING):
                continue
            if any(_reads_weight(code, path) for code in _codes(function.__code__)):
                return name
    return None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _reads_weight(code: CodeType, path: tuple[str, ...]) -> bool:
    if "weight" not in code.co_names:
        return False
    held: set[str] = set()  # local names of the child
    done = [at for at in dis.get_instructions(code) if at.opname not in ("CACHE", "NOP", "EXTENDED_ARG")]
    for number, at in enumerate(done[1:], 1):
        before = done[number - 1]
        if path[-1].isdigit() and before.opname in ("BINARY_SUBSCR", "BINARY_OP"):
            counted = [one.argval for one in done[max(0, number - 4) : number - 1]]
            is_child = path[0] in counted or (len(path) == 1 and "self" in counted)
        else:
            is_child = before.opname == "LOAD_ATTR" and before.argval == path[-1]
        is_child |= before.opname.startswith("LOAD_FAST") and before.argval in held
        if is_child and at.opname == "STORE_FAST":
            held.add(at.argval)
        if is_child and at.opname == "LOAD_ATTR" and at.argval == "weight":
            return True
    return False
