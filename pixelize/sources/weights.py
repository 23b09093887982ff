"""Somebody's checkpoint into a freshly built model: state dicts as safetensors or as torch saves them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pixelize.errors import LoadError


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fills ``model`` with the state dict in ``path``, in place.

    A checkpoint may hold it under any name beside other things (``{"netG_state_dict": ...}``), and its names
    may begin with ``module.`` or ``_orig_mod.``, as DistributedDataParallel and torch.compile leave them.
    Nothing but tensors and plain containers is unpickled.

    Raises LoadError if there is no such file, it holds no weights, or they do not fit; the model is then as
    it was.
    """
    found = _candidates(_read(Path(path)))
    if not found:
        raise LoadError(f"{path}: holds no state dict (names with tensors)")
    expected = model.state_dict()
    best = max(found, key=lambda name: len(found[name].keys() & expected.keys()))
    weights = found[best]
    missing = sorted(expected.keys() - weights.keys())
    surplus = sorted(weights.keys() - expected.keys())
    shaped = sorted(k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape)
    told = []
    if missing:
        told.append(f"{len(missing)} missing, such as {missing[0]}")
    if surplus:
        told.append(f"{len(surplus)} that the model does not have, such as {surplus[0]}")
    for k in shaped[:1]:
        told.append(f"{k} is {tuple(weights[k].shape)} there and {tuple(expected[k].shape)} here")
    if told:
        raise LoadError(f"{path}: its weights do not fit this {type(model).__name__}: {'; '.join(told)}")
    model.load_state_dict(weights)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise LoadError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    except Exception as error:  # pickle.UnpicklingError and what a strange pickle may raise
        raise LoadError(
            f"{path}: holds more than tensors and plain containers, or is no checkpoint; save the state dict "
            "alone (torch.save(model.state_dict(), ...) or safetensors)"
        ) from error


def _candidates(value: Any, name: str = "") -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in a checkpoint by the path to it, with and without prefixes."""
    if not isinstance(value, Mapping):
        return {}
    found = {}
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    while tensors:
        found[name] = tensors
        name += " without prefix"
        bare = {_bare(k): v for k, v in tensors.items()}
        tensors = bare if bare.keys() != tensors.keys() else {}
    for key, part in value.items():
        found.update(_candidates(part, f"{name}.{key}"))
    return found


def _bare(name: str) -> str:
    return name.removeprefix("_orig_mod.") if name.startswith("_orig_mod.") else name.removeprefix("module.")
