"""A module's class with something put before it: made once for each class, copied and pickled like any."""

from __future__ import annotations

import copyreg
from functools import lru_cache
from types import new_class
from typing import Any


@lru_cache(None)
def combined(mixin: type, cls: type) -> type:
    """``cls`` with the methods of ``mixin`` before its own: the same name, and a subclass of both.

    Raises whatever ``cls`` raises when a subclass of it is made.
    """
    held = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduced,
        "_combined": (mixin, cls),
    }
    return new_class(cls.__name__, (mixin, cls), exec_body=lambda namespace: namespace.update(held))


def own_class(value: Any, mixin: type) -> type | None:
    """The class that :func:`combined` was given with ``mixin`` for ``value``'s class; None if it was not."""
    pair = vars(type(value)).get("_combined")
    return pair[1] if pair is not None and pair[0] is mixin else None


def _reduced(self: Any, protocol: int) -> Any:
    mixin, cls = type(self)._combined
    made = super(type(self), self).__reduce_ex__(protocol)
    if isinstance(made, tuple) and made[0] is copyreg.__newobj__ and made[1][0] is type(self):
        return (_blank, (mixin, cls, *made[1][1:]), *made[2:])
    return made


def _blank(mixin: type, cls: type, *arguments: Any) -> Any:
    made = combined(mixin, cls)
    return made.__new__(made, *arguments)
