"""Somebody's checkpoint into a freshly built model: state dicts as safetensors or as torch saves them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.checkpoints.formats import read_checkpoint
from pixelize.errors import LoadError


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fills ``model`` with the state dict in the file ``path``, in place; see :func:`fill`."""
    fill(model, read_checkpoint(path))


def fill(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Fills ``model`` with the state dict in ``checkpoint``, in place; returns where each of its tensors was.

    A checkpoint may hold it under any name beside other things (``{"netG_state_dict": ...}``), and its names
    may have something before them: ``module.`` or ``_orig_mod.``, as DistributedDataParallel and
    torch.compile leave them, or the name of the part of a larger model that this one is. Of several that fit
    equally, the one with ``ema`` in its name is taken.

    Raises LoadError if the file holds no weights, or none that fit; the model is then as it was.
    """
    expected = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    candidates = _candidates(checkpoint.tree, expected)
    if not candidates:
        raise LoadError(f"{checkpoint.path}: holds no state dict (names with tensors)")

    def shape_of(name: str) -> torch.Size | None:
        return checkpoint.tensors[name].shape if name in checkpoint.tensors else None

    def fitness(names: Mapping[str, str]) -> tuple[int, int, bool]:
        fitting = [k for k in names.keys() & expected.keys() if shape_of(names[k]) == expected[k].shape]
        return len(fitting), -len(names), any("ema" in n.split("/")[0] for n in names.values())

    names = max(candidates, key=fitness)
    names = dict(names)
    if odd := next((key for key, name in names.items() if name not in checkpoint.tensors), None):
        raise LoadError(f"{checkpoint.path}: {odd} is sparse or quantised; save it as a plain tensor")
    for key, tied in _tied(expected).items():  # safetensors keeps one of the names of a shared tensor
        if key not in names and (known := next((other for other in tied if other in names), None)):
            names[key] = names[known]
    weights = {key: checkpoint.tensors[name] for key, name in names.items()}
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
        raise LoadError(
            f"{checkpoint.path}: its weights do not fit this {type(model).__name__}: {'; '.join(told)}"
        )
    with torch.no_grad():
        model.load_state_dict(weights)
    return names


def _tied(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names of one and the same tensor, by each of them."""
    places: dict[tuple[Any, ...], list[str]] = {}
    for key, value in state.items():
        place = (value.device, value.data_ptr(), value.shape, value.stride())
        places.setdefault(place if value.data_ptr() else (key,), []).append(key)
    return {key: keys for keys in places.values() if len(keys) > 1 for key in keys}


def _candidates(value: Any, expected: Mapping[str, Tensor], place: str = "") -> list[dict[str, str]]:
    """Every mapping of keys to tensors in a checkpoint, as the tensors' names in the file by those keys: as
    it is, and cut to what follows whatever stands before one of the ``expected`` keys.
    """
    if isinstance(value, list | tuple):
        value = {str(number): part for number, part in enumerate(value) if not isinstance(part, Tensor)}
    if not isinstance(value, Mapping):
        return []
    candidates = []
    tensors = {k: f"{place}{k}" for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        candidates.append(tensors)
        ends = dict.fromkeys([*list(expected)[:1], *list(expected)[-1:]])
        starts = {k.removesuffix(end) for end in ends for k in tensors if k.endswith(f".{end}")}
        for start in sorted(starts, key=len):
            cut = {k.removeprefix(start): name for k, name in tensors.items() if k.startswith(start)}
            candidates.append(cut)
    for key, part in value.items():
        candidates += _candidates(part, expected, f"{place}{key}/")
    return candidates
