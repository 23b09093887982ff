"""Who else reads a convolution's weight: what takes the convolution's place has it in another layout."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, fx, nn

from pixelize.rewrites.seeing.apart import apart
from pixelize.rewrites.seeing.capture import recorded
from pixelize.rewrites.state.modules import modules_of

_MAKING = ("__init__", "init", "reset")
"""In the names of methods that make a model: they have run."""


_BY_NAME = frozenset({"getattr", "attrgetter", "vars", "__dict__"})
_BY_WALKING = frozenset(
    {"children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}
)
_PARAMETERS = frozenset({"parameters", "named_parameters", "_parameters", "state_dict", "get_parameter"})


def readers_in_training(model: nn.Module, example_inputs: Any) -> fx.Graph | None:
    """What ``model`` runs in training mode, recorded of a copy; None where it does not run so."""

    def trained(copy: nn.Module) -> fx.Graph:
        for module in modules_of(copy):
            module.training = True
        return recorded(copy, example_inputs)

    try:
        return apart(model, trained)
    except Exception:  # it may want targets then, or more than one sample
        return None


def weight_readers(model: nn.Module, graphs: Iterable[fx.Graph], names: tuple[str, ...]) -> str | None:
    """Why the weight of the convolution that goes by ``names`` must stay as it is, or None if it need not.

    Those who read it in the runs of which ``graphs`` tell are seen; for those who do under another flag, the
    methods of the modules around it are read.
    """
    for name in names:
        prefix, _, last = name.rpartition(".")
        parent = model.get_submodule(prefix) if name else None
        if last == "base_layer" and hasattr(parent, "merge"):
            return f"{type(parent).__name__} may merge its adapter into the weight: merge and unload it first"
    states = {f"{name}.weight" if name else "weight" for name in names}
    for node in (node for graph in graphs for node in graph.nodes):
        if node.meta.get("state") not in states:
            continue
        for user in node.users:
            if str(user.meta.get("owner")) not in names:
                return f"its weight is read by {user.meta.get('owner') or type(model).__name__} too"
    for name in names:
        for reader in _around(model, name):
            path = tuple(name.split(".")[-2:])
            if method := _reading(type(reader), path):  # type: ignore[arg-type]
                return f"its weight is read by {type(reader).__name__}.{method} too"
            held = [getattr(value, "func", value) for value in vars(reader).values()]  # partials among them
            if function := _reading_all([value for value in held if isinstance(value, FunctionType)]):
                return f"its weight is read by {function} too"
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
    counted ``<anything>.parent[<any>].weight``; or of one that a forward may call and that may read it
    without naming it. ``path``: the child's name, after that of its parent."""
    methods = [(name, method, list(_codes(method.__code__))) for name, method in _methods(kind)]
    for name, _, codes in methods:
        if not any(part in name for part in _MAKING) and any(_reads_weight(code, path) for code in codes):
            return name
    called, waiting = set[str](), {"forward"}
    while waiting:
        called |= waiting
        of = [codes for name, _, codes in methods if name in waiting]
        mentioned = {n for codes in of for code in codes for n in code.co_names}
        waiting = ({name for name, _, _ in methods} & mentioned) - called
    run = [(name, method, codes) for name, method, codes in methods if name in called]
    for name, _, codes in run:
        if _may_read(codes, path):
            return name
    # x.to, x.train and the like are rarely the module's
    named = [m for name, m, _ in run if name == "forward" or not hasattr(nn.Module, name)]
    return _reading_all([m for m in named if not hasattr(Tensor, m.__name__)])


def _reading_all(callers: list[FunctionType]) -> str | None:
    """The name of a function that asks for all parameters, among ``callers`` and those of somebody's own that
    they name or hold. Not for the ``next`` alone, as who wants to know their type does; and who reads the
    weight itself finds the convolution's (:mod:`pixelize.rewrites.idioms.held_before`).
    """
    waiting, found = list(callers), set(callers)
    while waiting:
        caller = waiting.pop()
        names = {name for code in _codes(caller.__code__) for name in code.co_names}
        if names & _PARAMETERS and "next" not in names:
            return caller.__name__
        for value in (*_closed_over(caller), *(caller.__globals__.get(name) for name in sorted(names))):
            is_function = isinstance(value, FunctionType) and value not in found
            if is_function and not str(value.__module__).startswith(("torch", "pixelize.")):
                found.add(value)
                waiting.append(value)
    return None


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it may be empty yet
            yield cell.cell_contents


def _methods(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """The methods that a class has or inherits from somebody's own classes."""
    for cls in kind.__mro__:
        if cls.__module__.startswith("torch.nn.") or cls is object:
            continue
        for name, method in vars(cls).items():
            function = getattr(method, "__func__", method)
            function = getattr(function, "__wrapped__", function)
            if isinstance(function, FunctionType):
                yield name, function


def _may_read(codes: list[CodeType], path: tuple[str, ...]) -> bool:
    """Whether a method gets at a ``weight`` of something that it does not name: by ``getattr``, in a loop
    over children or over the list in which the child is.
    """
    named = {name for code in codes for name in code.co_names}
    if not any(_gets_of_an_object(code) for code in codes):
        named -= {"getattr"}
    texts = {text for code in codes for text in code.co_consts if isinstance(text, str)}
    weighs = "weight" in named or any(text == "weight" or text.endswith(".weight") for text in texts)
    in_list = path[-1].isdigit() and len(path) > 1 and path[0] in named
    indirect = bool(named & (_BY_NAME | _BY_WALKING | _PARAMETERS))
    return weighs and (indirect or (in_list and _loops(codes)))


def _gets_of_an_object(code: CodeType) -> bool:
    """Whether ``getattr`` is asked of anything but a global name, such as the module of functions ``F``."""
    loads = [at for at in dis.get_instructions(code) if at.opname.startswith("LOAD_")]
    pairs = zip(loads, [*loads[1:], None], strict=True)
    return any(
        at.argval == "getattr" and (after is None or not after.opname.startswith("LOAD_GLOBAL"))
        for at, after in pairs
    )


def _loops(codes: list[CodeType]) -> bool:
    return any(at.opname in ("FOR_ITER", "GET_ITER") for code in codes for at in dis.get_instructions(code))


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
