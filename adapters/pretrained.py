"""``save_pretrained`` and ``from_pretrained`` of converted models.

A converted model has layers that its library knows nothing of. :func:`connect` wraps the two methods of each
library's base class: a converted model is saved as the library's own configuration file beside what
``pixelize.save`` writes, and a folder that holds such files is loaded as the converted model. Everything else
goes through the library's methods untouched. Without this package the library refuses such a folder instead
of filling it with random weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pixelize.adapters.adapter import Pretrained, adapters

PLAN = "pixelize.json"
Save = Callable[[nn.Module, str], Any]
Load = Callable[[str, nn.Module], Any]


def connect(save: Save, load: Load, is_converted: Callable[[nn.Module], bool]) -> None:
    """Wraps the methods of every adapter's library: at once where it is imported, otherwise as soon as it is.

    ``save(model, folder)`` and ``load(folder, into)`` are ``pixelize.save`` and ``pixelize.load``. Doing it
    again changes nothing.
    """
    waiting: dict[str, Callable[[ModuleType], None]] = {}
    for adapter in adapters():
        known = adapter.pretrained
        if known is None:
            continue

        def install(module: ModuleType, known: Pretrained = known) -> None:
            _wrap(getattr(module, known.owner), known, save, load, is_converted)

        if known.module in sys.modules:
            install(sys.modules[known.module])
        else:
            waiting[known.module] = install
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(waiting))


def _wrap(
    owner: Any, known: Pretrained, save: Save, load: Load, is_converted: Callable[[nn.Module], bool]
) -> None:
    if "_pixelize_wrapped" in vars(owner):
        return
    original_save, original_load = owner.save_pretrained, owner.from_pretrained.__func__

    @wraps(original_save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_converted(self):
            return original_save(self, save_directory, *args, **kwargs)
        folder = str(save_directory)
        Path(folder).mkdir(parents=True, exist_ok=True)
        known.save_config(self, folder)
        save(self, folder)
        return None

    @wraps(original_load)
    def from_pretrained(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        folder = Path(str(path), kwargs.get("subfolder") or "")
        if not (folder / PLAN).is_file():
            return original_load(cls, path, *args, **kwargs)
        model = known.build(cls, str(folder))
        load(str(folder), model)
        dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))
        return (model if dtype in (None, "auto") else model.to(dtype)).eval()

    owner.save_pretrained = save_pretrained
    owner.from_pretrained = classmethod(from_pretrained)
    owner._pixelize_wrapped = True


class _AfterImport(MetaPathFinder):
    """Calls back when one of the awaited modules has been imported."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, its loader followed by the callback; None for all other modules."""
        callback = self.waiting.pop(fullname, None)
        spec = find_spec(fullname) if callback is not None else None
        if spec is None or spec.loader is None or callback is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            callback(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
