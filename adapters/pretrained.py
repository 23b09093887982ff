"""``save_pretrained`` and ``from_pretrained`` of converted models.

A converted model has layers that its library knows nothing of. :func:`connect` wraps the two methods of the
library's base class: a converted model is saved as the library's own configuration file beside a folder
``pixelize/`` with what ``pixelize.save`` writes, and a folder that holds such a one is loaded as the
converted model. Arguments mean what they do there (``is_main_process``, ``push_to_hub``, ``device_map``,
``output_loading_info``, ``torch_dtype``); those that a converted model cannot follow are refused. Everything
else goes through the library's methods untouched. Unconnected, the library finds
no weights in such a folder and refuses it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import nn

from pixelize.adapters.adapter import Pretrained, adapters

SAVED = "pixelize"
LOADING_INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
_WRAPPED: WeakSet[type] = WeakSet()
"""The libraries' base classes whose methods know converted models."""
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
    if owner in _WRAPPED:
        return
    original_save, original_load = owner.save_pretrained, owner.from_pretrained.__func__

    @wraps(original_save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_converted(self):
            return original_save(self, save_directory, *args, **kwargs)
        given = _arguments(original_save, (self, save_directory, *args), kwargs)
        _refuse(given, ("state_dict", "variant"), "saved")
        if given.get("safe_serialization") is False:
            raise ValueError("a converted model is saved as safetensors: leave safe_serialization out")
        if not given.get("is_main_process", True):
            return None
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        known.save_config(self, str(folder))
        save(self, str(folder / SAVED))
        return _push(folder, given) if given.get("push_to_hub") else None

    @wraps(original_load)
    def from_pretrained(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        folder = Path(str(path), kwargs.get("subfolder") or "")
        if not (folder / SAVED).is_dir():
            return original_load(cls, path, *args, **kwargs)
        given = _arguments(original_load, (cls, path, *args), kwargs)
        _refuse(given, ("config", "state_dict", "variant", "quantization_config"), "loaded")
        model = known.build(cls, str(folder))
        load(str(folder / SAVED), model)
        dtype = given.get("torch_dtype", given.get("dtype"))
        model = (model if dtype in (None, "auto") else model.to(dtype)).eval()
        model = _placed(model, given.get("device_map", given.get("map_location")))
        told: dict[str, list[str]] = {key: [] for key in LOADING_INFO}  # load raises where it is not so
        return (model, told) if given.get("output_loading_info") else model

    owner.save_pretrained = save_pretrained
    owner.from_pretrained = classmethod(from_pretrained)
    _WRAPPED.add(owner)


def _arguments(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a method of a library is called with, by name: without its first, the object or class."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            named[name] = value
    return named


def _refuse(given: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if given.get(name) is not None:
            raise ValueError(
                f"a converted model cannot be {what} with {name}=...: leave that out, or revert the "
                "model first (pixelize.revert)"
            )


def _push(folder: Path, given: dict[str, Any]) -> Any:
    """Uploads a saved folder, as the libraries do. Raises what huggingface_hub does."""
    from huggingface_hub import HfApi

    api = HfApi(token=given.get("token"))
    repo = api.create_repo(given.get("repo_id") or folder.name, private=given.get("private"), exist_ok=True)
    return api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        commit_message=given.get("commit_message") or "Upload a converted model",
        create_pr=bool(given.get("create_pr")),
        revision=given.get("revision"),
    )


def _placed(model: nn.Module, where: Any) -> nn.Module:
    """The model where a ``device_map`` says: a device, ``"auto"`` and the like, or devices by module."""
    if isinstance(where, dict) and set(where) == {""}:
        where = where[""]
    if where is None:
        return model
    if isinstance(where, dict) or where in ("auto", "balanced", "balanced_low_0", "sequential"):
        from accelerate import dispatch_model, infer_auto_device_map

        if not isinstance(where, dict):
            where = infer_auto_device_map(
                model, no_split_module_classes=getattr(model, "_no_split_modules", None)
            )
        return dispatch_model(model, where)
    return model.to(where)
