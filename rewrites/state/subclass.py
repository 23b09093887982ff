"""A module's class with something put before it: made once for each class, copied and pickled like any."""

from __future__ import annotations

import copyreg
from functools import lru_cache
from types import new_class
from typing import Any


def combined(first: type, second: type, like: type | None = None) -> type:
    """A subclass of both, the methods of ``first`` before those of ``second``, with the name of ``like``
    (``second`` if that is None).

    Raises whatever the classes raise when a subclass of them is made.
    """
    return _combined(first, second, like or second)


@lru_cache(None)
def _combined(first: type, second: type, cls: type) -> type:
    held = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduced,
        "_combined": (first, second, cls),
    }
    return new_class(cls.__name__, (first, second), exec_body=lambda namespace: namespace.update(held))


def own_class(value: Any, mixin: type) -> type | None:
    """The class that :func:`combined` was given with ``mixin`` for ``value``'s class; None if it was not."""
    made_of = vars(type(value)).get("_combined")
    return made_of[1] if made_of is not None and made_of[0] is mixin else None


def _reduced(self: Any, protocol: int) -> Any:
    made = super(type(self), self).__reduce_ex__(protocol)
    if isinstance(made, tuple) and made[0] is copyreg.__newobj__ and made[1][0] is type(self):  # type: ignore[attr-defined]
        return (_blank, (*type(self)._combined, *made[1][1:]), *made[2:])
    return made


def _blank(first: type, second: type, like: type, *arguments: Any) -> Any:
    made = _combined(first, second, like)
    return made.__new__(made, *arguments)
