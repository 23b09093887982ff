"""Putting one module in another's place without moving it: whoever holds a reference to it sees the new
one."""

from __future__ import annotations

from typing import Any

from torch import nn

State = tuple[type, dict[str, Any]]
"""What a module is: its class and its dictionary."""


def state_of(module: nn.Module) -> State:
    """The module's present class and dictionary, enough to put it back with :func:`become`."""
    return type(module), module.__dict__


def become(module: nn.Module, state: State) -> None:
    """Makes ``module`` the module that ``state`` describes, keeping its identity.

    Every reference to it stays valid: parents (shared modules have several), plain lists, closures, hooks'
    handles, compiled code.
    """
    module.__class__, module.__dict__ = state
