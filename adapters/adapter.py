"""An adapter: what pixelize needs to know about one library, as a value; and the registry of them.

Adding a library is adding a value. Other packages do it with an entry point of the group
``pixelize.adapters`` that names an :class:`Adapter` (``examples/third_party_adapter.py``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from pixelize.rewrites.seeing.given import read
from pixelize.rewrites.state.modules import placed

ENTRY_POINTS = "pixelize.adapters"


def call(model: nn.Module, inputs: Any) -> Any:
    """``model`` on a tensor, a tuple or list of positional or a mapping of keyword arguments; what lies on
    the CPU is moved to where the model is. Of a generator, what it yields.
    """
    inputs = placed(inputs, model)
    if isinstance(inputs, Mapping):
        return read(model(**inputs))
    return read(model(*inputs) if isinstance(inputs, tuple | list) else model(inputs))


@dataclass(frozen=True)
class Pretrained:
    """How a library saves and loads a model: where its methods live, and its two halves without the weights.

    ``module`` and ``owner`` name the class whose ``save_pretrained`` and ``from_pretrained`` the library's
    models inherit.
    ``save_config(model, folder)`` writes everything but weights, ``build(cls, folder)`` makes a model with
    fresh weights from that.
    """

    module: str
    owner: str
    save_config: Callable[[Any, str], None]
    build: Callable[[type, str], nn.Module]


@dataclass(frozen=True)
class Adapter:
    """One library (or family of models).

    ``detect`` tells from a model, without importing the library, whether the adapter is for it.
    ``example_inputs`` makes small inputs from the model alone: a tensor, a tuple of positional or a dict of
    keyword arguments, on its device and of its type; it raises ValueError when it cannot. ``run`` runs the
    model on one element of calibration data. ``pretrained`` is None where the library has no such thing.
    """

    name: str
    detect: Callable[[nn.Module], bool]
    example_inputs: Callable[[nn.Module], Any]
    run: Callable[[nn.Module, Any], Any] = call
    pretrained: Pretrained | None = None


def comes_from(*packages: str) -> Callable[[nn.Module], bool]:
    """A ``detect``: the model's class, or one that it inherits from, is defined in one of ``packages``."""

    def detect(model: nn.Module) -> bool:
        return any(cls.__module__.split(".")[0] in packages for cls in type(model).__mro__)

    return detect


_adapters: tuple[Adapter, ...] = ()
_entry_points_read = False


def register(adapter: Adapter) -> None:
    """Adds an adapter, which comes before those that are there already; one of the same name is replaced.

    The registry is copied on writing: a registration that fails leaves it unchanged. Raises TypeError for
    what is no adapter.
    """
    global _adapters
    if not isinstance(adapter, Adapter):
        raise TypeError(f"not an Adapter: {adapter!r}")
    _adapters = (adapter, *(a for a in _adapters if a.name != adapter.name))


def adapters() -> tuple[Adapter, ...]:
    """All adapters in the order in which they are asked, those of other packages' entry points first."""
    global _entry_points_read
    if not _entry_points_read:
        _entry_points_read = True
        for point in entry_points(group=ENTRY_POINTS):
            try:
                register(point.load())
            except Exception as error:  # somebody else's package
                warnings.warn(
                    f"the adapter {point.name!r} ({point.value}) could not be loaded: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
    return _adapters


def find(model: nn.Module) -> Adapter | None:
    """The first adapter that says ``model`` is its, or None."""
    return next((a for a in adapters() if a.detect(model)), None)
