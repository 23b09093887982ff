"""What ``torch.save`` wrote (``.pth``, ``.pt``, ``.ckpt``, ``.bin``): tensors in nested dictionaries and
lists.

Nothing but tensors and plain containers is ever unpickled. What is written back has the same containers in
the same order, with their own attributes (the ``_metadata`` of a state dict, say), the same strides, the
same tensors shared, in the same format, the old one of before torch 1.6 included. All of it lies on the
CPU.
"""

from __future__ import annotations

import errno
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.errors import LoadError
from pixelize.files import replacing


def read_torch(path: Path) -> Checkpoint:
    """Raises LoadError if the file is none, is damaged, or holds more than tensors and plain containers."""
    tree = _load(path)
    tensors: dict[str, Tensor] = {}
    for name, value in _leaves(tree, ()):
        if name in tensors:
            raise LoadError(f"{path}: holds two tensors that are both named {name!r}")
        tensors[name] = value

    def replace(out: Path, values: Mapping[str, Tensor]) -> list[Path]:
        new: dict[int, Tensor] = {}
        for name, value in values.items():
            old = tensors[name]
            # shared tensors stay shared where they stay equal
            if id(old) not in new or not torch.equal(new[id(old)], value):
                new[id(old)] = _like(old, value)
            values = {**values, name: new[id(old)]}
        as_zip = zipfile.is_zipfile(path)
        with replacing(out) as new_file, new_file.open("wb") as file:
            try:
                torch.save(_rebuilt(tree, (), values), file, _use_new_zipfile_serialization=as_zip)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(errno.EIO, f"not written ({error})", str(out)) from error
        return [out]

    return Checkpoint(path, tensors, tree, replace)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        text = " ".join(str(error).split())
        if "TorchScript" in text:
            told = (
                "a TorchScript archive, a program whose layers cannot be changed; save its state dict alone "
                "(torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')), give that file with --arch, "
                "the Python model that it was made of, and script the result again"
            )
        elif named := re.search(r"(?:GLOBAL|Unsupported (?:global|class))[: ]+(?:GLOBAL )?([\w.]+)", text):
            told = (
                f"holds {named[1]}, which is more than tensors and plain containers and is not "
                "unpickled; where you trust the file, load it with weights_only=False and save its "
                "state dict alone"
            )
        elif "PytorchStreamReader" in text or isinstance(error, EOFError):
            told = "damaged or incomplete (a download that was cut off, perhaps)"
        else:
            told = f"not a readable checkpoint ({type(error).__name__}: {text[:120]})"
        raise LoadError(f"{path}: {told}") from error


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Every plain tensor under ``value`` and its name."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_quantized:
            yield "/".join(path) or "tensor", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _leaves(part, (*path, str(number)))


def _rebuilt(value: Any, path: tuple[str, ...], values: Mapping[str, Tensor]) -> Any:
    """``value`` with its tensors replaced; containers without one in them are the same objects."""
    if isinstance(value, Tensor):
        return values.get("/".join(path) or "tensor", value)
    if isinstance(value, Mapping):
        parts = {key: _rebuilt(part, (*path, str(key)), values) for key, part in value.items()}
        if all(parts[key] is part for key, part in value.items()):
            return value
        copy = value.__class__()  # dict, OrderedDict, defaultdict
        copy.__dict__.update(value.__dict__) if hasattr(value, "__dict__") else None
        copy.update(parts)  # type: ignore[attr-defined]
        return copy
    if isinstance(value, list | tuple):
        items = [_rebuilt(part, (*path, str(number)), values) for number, part in enumerate(value)]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    return value


def _like(old: Tensor, value: Tensor) -> Tensor:
    """``value`` as what ``old`` is: a parameter or a tensor, of its strides."""
    new = torch.empty_like(old, requires_grad=False).copy_(value)
    return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
