"""Array files: ``.npy``, one array, and ``.npz``, several by name. Nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.sources.passed_over import PassedOver, Place, UnreadableError
from pixelize.sources.pictures import told

ARRAYS = (".npy", ".npz")
LARGEST_ARRAY = 2**32
"""Bytes of an array in an archive, unpacked, at most."""


def read_array(path: Path) -> Any:
    """A tensor, floating-point numbers as float32, or of an ``.npz`` file a dict of them. Raises
    UnreadableError for what is none."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                _check_size(file, path.stat().st_size)
            return _tensor(np.load(path, allow_pickle=False), str(path))
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    _check_size(stream, min(member.file_size, LARGEST_ARRAY))
        with np.load(path, allow_pickle=False) as loaded:
            return {name: _tensor(loaded[name], f"{path}[{name}]") for name in loaded.files}
    except ArgumentError:
        raise
    except (
        ValueError, OSError, EOFError, KeyError, RuntimeError, NotImplementedError, MemoryError, zlib.error,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UnreadableError(
            f"{path}: not an array file that numpy reads, or one of Python objects"
        ) from error


def arrays(places: Iterable[Place], passed: PassedOver) -> Iterator[tuple[Place, Any]]:
    """What the files hold that can be read, with their places."""
    for place in places:
        with passed.over(place):
            yield place, read_array(_file(place))


def _file(place: Place) -> Path:
    """The file at a place. Raises ArgumentError for one in an archive."""
    if place[1] is not None:
        raise ArgumentError(f"{told(place)}: unpack arrays that are in an archive")
    return Path(place[0]).expanduser()


def _check_size(stream: IO[bytes], size: int) -> None:
    """Raises ValueError if an array's header promises more than ``size`` bytes: numpy makes room for it."""
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    if math.prod(shape) * kind.itemsize > size:
        raise ValueError(f"an array of shape {shape} in {size} bytes")


def _tensor(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "buif" or array.size == 0:
        raise UnreadableError(f"{name}: {array.dtype} of shape {array.shape}; numbers are needed")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    tensor = torch.from_numpy(native)
    return tensor.float() if array.dtype.kind == "f" else tensor
