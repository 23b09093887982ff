"""A file of weights: its tensors by name, and the same file with some of them replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelize.errors import LoadError

Writer = Callable[[Path, Mapping[str, Tensor]], list[Path]]


@dataclass(frozen=True)
class Checkpoint:
    """What was read of a file, or of a folder of them.

    ``tree`` is what the file holds, ``tensors`` are the tensors in it by their names; of nested dictionaries
    the keys are joined by ``/``. ``replace(out, values)`` writes the same file to ``out`` with ``values`` in
    the place of the tensors of these names, whole or not at all, and returns what was written.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    tree: Any
    replace: Writer

    def write(self, out: Path, values: Mapping[str, Tensor]) -> list[Path]:
        """The file with ``values`` in place of its own tensors; everything else stays as it is.

        Values are rounded to the type that the file holds them in. Raises LoadError for a name or a shape
        that the file does not have; OSError if the disk refuses, and what was there before is then
        untouched.
        """
        cast: dict[str, Tensor] = {}
        for name, value in values.items():
            if name not in self.tensors:
                raise LoadError(f"{self.path}: holds no tensor {name!r}")
            old = self.tensors[name]
            if old.shape != value.shape:
                raise LoadError(
                    f"{self.path}: {name} is {tuple(old.shape)} there and cannot become {tuple(value.shape)}"
                )
            cast[name] = value.detach().to("cpu", old.dtype)
        return self.replace(out, cast)


def bytes_of(tensor: Tensor) -> bytes:
    """The elements in row-major order, as the machine holds them."""
    if tensor.numel() == 0:
        return b""  # of which torch shows no view
    return _as_bytes(tensor).numpy().tobytes()


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one type and shape and equal to the bit (NaN equals itself)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.layout != torch.strided or b.layout != torch.strided:
        return False
    return a.numel() == 0 or torch.equal(_as_bytes(a), _as_bytes(b))


def hash_of(tensor: Tensor) -> str:
    """128 bits of SHA-256 over type, shape and elements."""
    told = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(told + bytes_of(tensor)).hexdigest()[:32]
