"""Pictures by name: files, folders, zip archives and the frames of animations, decoded one at a time."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.extras import require

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
LARGEST = 2**29
"""Bytes of one file in an archive, unpacked, at most."""


LARGEST_PICTURE = 2**27
"""Pixels of a picture at most."""


def listed(name: str) -> list[tuple[str, str | None]]:
    """The picture files that ``name`` stands for, in the order of their names: a path, and the place in it if
    that is a zip archive.

    Raises ArgumentError for a folder or an archive without a picture in it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        there = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not _hidden(p, path))
        inside = sorted(p for p in there if p.is_file())  # no pipe, which would be waited for
        found: list[tuple[str, str | None]] = [(str(p), None) for p in inside]
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ArgumentError(f"{name}: not a readable zip archive ({error})") from error
        kept = [
            n for n in names if n.lower().endswith(SUFFIXES) and not n.split("/")[0].startswith("__MACOSX")
        ]
        found = [(str(path), n) for n in kept]
    elif path.suffix.lower() in VIDEOS:
        raise ArgumentError(
            f"{name}: a video; write its frames as pictures first: ffmpeg -i {path.name} frames/%05d.png"
        )
    else:
        return [(str(path), None)]
    if not found:
        kind = "folder" if path.is_dir() else "zip archive"
        raise ArgumentError(f"{name}: a {kind} without pictures ({', '.join(SUFFIXES[:4])}, ...)")
    return found


def frames(
    place: tuple[str, str | None],
    *,
    grey: bool = False,
    size: tuple[int, int] | None = None,
    every_frame: bool = False,
) -> Iterator[Tensor]:
    """A file's picture, or every frame of its animation: float32 (C, H, W) in [0, 1], C = 1 if ``grey``.

    ``size``: (height, width) to resize to. Raises ArgumentError if it cannot be read.
    """
    path, inside = place
    told = f"{path}/{inside}" if inside else path
    require("cli", told)
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with _opened(path, inside) as file, Image.open(file) as animation:
            if math.prod(animation.size) > LARGEST_PICTURE:
                raise ValueError("too many pixels")
            for image in ImageSequence.Iterator(animation) if every_frame else (animation,):
                frame = image.convert("L" if grey else "RGB")
                if size is not None:
                    frame = frame.resize((size[1], size[0]), Image.Resampling.BICUBIC)
                array = np.array(frame, dtype=np.float32)
                array /= 255
                yield torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, KeyError, RuntimeError,
        zipfile.BadZipFile, zlib.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise ArgumentError(f"{told}: not a readable picture ({type(error).__name__})") from error


def crops(pictures: Sequence[Tensor], side: tuple[int, int], count: int, seed: int) -> Iterator[Tensor]:
    """``count`` crops of ``side`` (height, width), as many of each picture, at places drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top, left = (
            int(torch.randint(have - want + 1, (1,), generator=generator))
            for have, want in zip(picture.shape[-2:], side, strict=True)
        )
        yield picture[:, top : top + side[0], left : left + side[1]]


def drawn(count: int, side: int, channels: int, seed: int) -> Iterator[Tensor]:
    """Pictures (channels, side, side) of discs of one colour that cover each other, of many sizes.

    What real pictures have most of, edges at every scale (a power spectrum that falls with the square of the
    frequency), and nothing periodic: the "dead leaves" of Lee, Mumford and Huang, 2001.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    for _ in range(count):
        picture = np.full((channels, side, side), 0.5, np.float32)
        for radius in 1 / np.sqrt(rng.uniform(4 / side**2, 1 / 4, 6 * side)):  # density as 1 / radius ** 3
            top, left = rng.uniform(-radius, side + radius, 2)
            picture[:, (y - top) ** 2 + (x - left) ** 2 < radius**2] = rng.random((channels, 1))
        yield torch.from_numpy(picture)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _opened(path: str, inside: str | None) -> IO[bytes]:
    if inside is None:
        return open(path, "rb")
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(inside).file_size > LARGEST:
            raise ValueError("too large")
        return io.BytesIO(archive.read(inside))
