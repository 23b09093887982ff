"""``save_pretrained`` and ``from_pretrained`` of converted models.

A converted model has layers that its library knows nothing of. :func:`connect` wraps the two methods of the
library's base class: a converted model is saved as the library's own configuration file beside a folder
``pixelize/`` with what ``pixelize.save`` writes, and a folder that holds such a one is loaded as the
converted model. Everything else goes through the library's methods untouched. Unconnected, the library finds
no weights in such a folder and refuses it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from pixelize.adapters.adapter import Pretrained, adapters

SAVED = "pixelize"
Save = Callable[[nn.Module, str], Any]
Load = Callable[[str, nn.Module], Any]


def connect(
    model: nn.Module | type, save: Save, load: Load, is_converted: Callable[[nn.Module], object]
) -> None:
    """Wraps the methods of the libraries that ``model``, a class or a model, or parts of it come from; doing
    it again changes nothing.

    ``save(model, folder)`` and ``load(folder, into)`` are ``pixelize.save`` and ``pixelize.load``.
    """
    kinds = {model} if isinstance(model, type) else {type(module) for module in model.modules()}
    for adapter in adapters():
        known = adapter.pretrained
        owner = getattr(sys.modules.get(known.module), known.owner, None) if known else None
        if known and owner and any(issubclass(kind, owner) for kind in kinds):
            _wrap(owner, known, save, load, is_converted)


def _wrap(
    owner: Any, known: Pretrained, save: Save, load: Load, is_converted: Callable[[nn.Module], object]
) -> None:
    if "_pixelize_wrapped" in vars(owner):
        return
    original_save, original_load = owner.save_pretrained, owner.from_pretrained.__func__

    @wraps(original_save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_converted(self):
            return original_save(self, save_directory, *args, **kwargs)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        known.save_config(self, str(folder))
        save(self, str(folder / SAVED))
        return None

    @wraps(original_load)
    def from_pretrained(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        folder = Path(str(path), kwargs.get("subfolder") or "")
        if not (folder / SAVED).is_dir():
            return original_load(cls, path, *args, **kwargs)
        model = known.build(cls, str(folder))
        load(str(folder / SAVED), model)
        dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))
        return (model if dtype in (None, "auto") else model.to(dtype)).eval()

    owner.save_pretrained = save_pretrained
    owner.from_pretrained = classmethod(from_pretrained)
    owner._pixelize_wrapped = True
