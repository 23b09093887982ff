"""Inputs by name: what the command line's INPUT means.

===================  ===============================================================================
``1x3x64x64``        a shape: normally distributed numbers, from a seed; ``AxB,CxD`` for two arguments
``photo.png``        a picture; ``photos/``: all pictures in a folder, in the order of their names
``latents.npy``      an array, as it is; ``inputs.npz``: keyword arguments by name
===================  ===============================================================================
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.running.inputs import BATCH, shape_of

Scale = Literal["unit", "signed", "imagenet"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_SHAPE = re.compile(r"\d+(x\d+)+(,\d+(x\d+)+)*", re.IGNORECASE)
_IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))


def read_inputs(
    names: Sequence[str],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    scale: Scale = "unit",
    count: int = 64,
    seed: int = 0,
) -> list[Any]:
    """A list of inputs, batches of pictures of one size or whatever an array or a shape holds.

    Args:
        names: see the module's documentation.
        channels: 1 makes pictures grey; anything else leaves them in colour.
        size: (height, width) to resize pictures to.
        scale: what pictures become: "unit" [0, 1], "signed" [-1, 1], "imagenet" with that set's mean and
            deviation taken out.
        count: how many pictures are read at most.
        seed: of the numbers that a shape is filled with.

    Raises:
        ArgumentError: no such file, one that cannot be read, or a name that means nothing.
    """
    if scale not in get_args(Scale):
        raise ArgumentError(f"scale={scale!r}: it is one of {', '.join(get_args(Scale))}")
    generator = torch.Generator().manual_seed(seed)
    found: list[Any] = []
    pictures: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ArgumentError(f"{name}: a folder without pictures ({', '.join(SUFFIXES[:4])}, ...)")
            pictures += inside
        elif path.suffix.lower() in (".npy", ".npz") and path.exists():
            found.append(_array(path))
        elif path.exists():
            pictures.append(path)
        elif _SHAPE.fullmatch(name):
            found.append(_random(name, generator))
        else:
            raise ArgumentError(
                f"no input is named {name!r}: there is no such file, and it is no shape such as 1x3x64x64"
            )
    return found + _batches(_picture(p, channels, size, scale) for p in pictures[:count])


def _random(name: str, generator: torch.Generator) -> Any:
    shapes = [[int(n) for n in part.lower().split("x")] for part in name.split(",")]
    for shape in shapes:
        if not all(shape) or np.prod(shape, dtype=float) > 2**31:
            raise ArgumentError(f"{name}: a shape of nothing, or of more than 8 GiB")
    tensors = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    return tensors if len(tensors) > 1 else tensors[0]


def _array(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _tensor(loaded, str(path))
            return {name: _tensor(loaded[name], f"{path}[{name}]") for name in loaded.files}
    except ArgumentError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            f"{path}: not an array file that numpy reads, or one of Python objects"
        ) from error


def _tensor(array: np.ndarray, told: str) -> Tensor:
    if array.dtype.kind not in "buif" or array.size == 0:
        raise ArgumentError(f"{told}: {array.dtype} of shape {array.shape}; numbers are needed")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    tensor = torch.from_numpy(native)
    return tensor.float() if array.dtype.kind == "f" else tensor


def _picture(path: Path, channels: int | None, size: tuple[int, int] | None, scale: Scale) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            array = np.asarray(image, dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArgumentError(f"{path}: not a readable picture ({type(error).__name__})") from error
    picture = torch.from_numpy(array / 255).reshape(array.shape[0], array.shape[1], -1).permute(2, 0, 1)
    if scale == "signed":
        return picture * 2 - 1
    if scale == "imagenet":
        mean, deviation = (values[: len(picture), None, None] for values in _IMAGENET)
        return (picture - mean) / deviation
    return picture.contiguous()


def _batches(pictures: Iterable[Tensor]) -> list[Tensor]:
    """Neighbours of one size stacked, at most ``BATCH`` together."""
    found: list[list[Tensor]] = []
    for picture in pictures:
        if found and len(found[-1]) < BATCH and found[-1][0].shape == picture.shape:
            found[-1].append(picture)
        else:
            found.append([picture])
    return [torch.stack(batch) for batch in found]


def parse_size(text: str) -> tuple[int, int]:
    """``"256"`` or ``"256x320"`` (height x width). Raises ArgumentError."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise ArgumentError(f"size {text!r}: write 256, or 256x320 for height x width")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def source_words(names: Sequence[str], inputs: Sequence[Any]) -> str:
    """What was read, in words for a report."""
    samples = sum(len(x) for x in inputs if isinstance(x, Tensor))
    listed = ", ".join(os.path.basename(n.rstrip("/")) or n for n in names)
    return f"{samples or len(inputs)} inputs from {listed} ({shape_of(inputs[0])})"
