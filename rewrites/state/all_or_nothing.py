"""Calls that leave nothing behind when they fail, at whatever moment an interrupt ends them.

Contexts alone do not do that: Ctrl-C that comes as a context's ``__enter__`` or ``__exit__`` begins, or
between two of its lines, leaves it entered for good. What a call of the package changes for a while is
therefore put back once more by the call itself, in plain ``except`` clauses, which Python cannot skip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial, wraps
from itertools import takewhile
from traceback import clear_frames
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn, overrides
from torch.amp.autocast_mode import is_autocast_available
from torch.utils import _python_dispatch

from pixelize.rewrites.state import random_state
from pixelize.rewrites.state.modules import devices_of

P = ParamSpec("P")
R = TypeVar("R")
Undo = Callable[[], Any]
_undos: ContextVar[list[Undo] | None] = ContextVar("undos", default=None)


def all_or_nothing(function: Callable[P, R]) -> Callable[P, R]:
    """A function that takes models, and that whatever is raised in it (``KeyboardInterrupt`` too) undoes.

    Put back are the state of random number generators, whether gradients are recorded, autocast, torch's
    modes, and what :func:`undone_on_failure` was told of. What a second interrupt leaves, while all this is
    put back, is left; and one that comes as the call returns finds the work done.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        models = [value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module)]
        outer, undos, done = _undos.get(), [*_process_state(models)], False

        def put_back() -> None:
            for undo in reversed(undos):
                undo()
            _undos.set(outer)

        try:
            try:
                _undos.set(undos)
                result = function(*args, **kwargs)
                _undos.set(outer)
                return result
            except BaseException as error:
                _end_generators(error)
                put_back()
                done = True
                raise
        except BaseException:
            if not done:  # interrupted while putting back
                put_back()
            raise

    return call


def undone_on_failure(undo: Undo) -> Undo:
    """If the call that is under way fails, ``undo()`` is called, maybe more than once, until what is returned
    here was called.
    """
    undos = _undos.get()
    if undos is None:
        return lambda: None
    undos.append(undo)
    # a call may forget what it was told of twice, or was interrupted before it was told
    return lambda: undos.remove(undo) if undo in undos else None


def _end_generators(error: BaseException) -> None:
    """After an interrupt, has generators that are contexts do now what they would do when the last that
    refers to the error forgets it, to whatever is there by then.
    """
    chain = [error]
    while (cause := chain[-1].__context__) is not None:
        chain.append(cause)
    if not all(isinstance(link, Exception) for link in chain):
        for link in chain:
            clear_frames(link.__traceback__)


def _process_state(models: list[nn.Module]) -> Iterator[Undo]:
    """What puts each part of it back."""
    devices = {device for model in models for device in devices_of(model)}
    yield random_state.keep(devices)
    yield partial(torch.set_grad_enabled, torch.is_grad_enabled())
    for kind in {"cpu", *(device.type for device in devices)}:
        if is_autocast_available(kind):
            yield partial(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            yield partial(torch.set_autocast_dtype, kind, torch.get_autocast_dtype(kind))
    yield _modes(_python_dispatch, _python_dispatch._get_current_dispatch_mode_stack)
    yield _modes(overrides, overrides._get_current_function_mode_stack)
    entered = {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}
    yield partial(vars(_python_dispatch).update, entered)


def _modes(of: Any, stack: Callable[[], list[Any]]) -> Undo:
    """What makes a stack of modes what it is now; ``of``: the module that pushes and pops them."""
    before = stack()

    def put_back() -> None:
        now = stack()
        common = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(before, now, strict=False)))
        for _ in now[common:]:
            of._pop_mode()
        for mode in before[common:]:
            of._push_mode(mode)

    return put_back
