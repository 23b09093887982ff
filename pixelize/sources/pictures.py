"""Pictures by name: files, folders, zip archives and the frames of animations, decoded one at a time."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.extras import require
from pixelize.sources.passed_over import Place, UnreadableError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
LARGEST = 2**29
"""Bytes of one file in an archive, unpacked, at most."""


LARGEST_PICTURE = 2**27
"""Pixels of a picture at most."""


def listed(name: str, *others: tuple[str, ...]) -> list[Place]:
    """The files of pictures, and of videos, that ``name`` stands for, in the order of their names; where a
    folder or an archive has none, those of the first of ``others`` (endings) that it has any of.

    Raises ArgumentError for a folder or an archive without any in it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        there = sorted(p for p in path.rglob("*") if not _hidden(p, path))
        places: list[Place] = [
            (str(p), None) for p in there if p.is_file()
        ]  # no pipe, it would be waited for
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ArgumentError(f"{name}: not a readable zip archive ({error})") from error
        places = [(str(path), n) for n in names if not n.split("/")[0].startswith("__MACOSX")]
    else:
        return [(str(path), None)]
    for endings in (SUFFIXES + VIDEOS, *others):
        files = [place for place in places if ending_of(place) in endings]
        if files:
            return files
    kind = "folder" if path.is_dir() else "zip archive"
    more = f", or any of {', '.join(e for endings in others for e in endings)}" if others else ""
    raise ArgumentError(f"{name}: a {kind} without pictures ({', '.join(SUFFIXES[:4])}, ...){more}")


def ending_of(place: Place) -> str:
    """``".png"``"""
    return Path(place[1] or place[0]).suffix.lower()


def frames(
    place: Place,
    *,
    grey: bool = False,
    size: tuple[int, int] | None = None,
    every_frame: bool = False,
) -> Iterator[Tensor]:
    """A file's picture, or every frame of its animation: float32 (C, H, W) in [0, 1], C = 1 if ``grey``.

    ``size``: (height, width) to resize to. Raises UnreadableError if it cannot be read.
    """
    require("cli", told(place))
    from PIL import Image, ImageSequence

    with _readable(place) as animation:
        for image in ImageSequence.Iterator(animation) if every_frame else (animation,):
            frame, largest = _deep(image) or (image.convert("L" if grey else "RGB"), 255)
            if size is not None:
                frame = frame.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            array = np.array(frame, dtype=np.float32)
            array /= largest
            picture = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
            if largest != 255:
                picture = picture.clamp(0, 1).expand(1 if grey else 3, -1, -1)
            yield picture.contiguous()


def sides_of(place: Place) -> tuple[int, int]:
    """A picture's height and width, of its header alone. Raises UnreadableError if it cannot be read."""
    require("cli", told(place))
    with _readable(place) as image:
        return image.size[1], image.size[0]


@contextmanager
def _readable(place: Place) -> Iterator[Any]:
    """A file's picture, of a size that is read. Raises UnreadableError for what goes wrong in this: Pillow
    may raise anything of a damaged file."""
    from PIL import Image

    name = told(place)
    if name.lower().endswith(VIDEOS):
        raise UnreadableError(
            f"{name}: a video; write its frames as pictures first: "
            f"ffmpeg -i {Path(name).name} frames/%05d.png"
        )
    try:
        with opened(*place) as file, Image.open(file) as image:
            _check_pixels(image.size)
            yield image
    except _RefusedError as error:
        raise UnreadableError(f"{name}: {error}") from error
    except Exception as error:
        raise UnreadableError(f"{name}: not a readable picture ({type(error).__name__})") from error


def told(place: Place) -> str:
    """A file's name as it is told to people."""
    return "/".join(part for part in place if part)


class _RefusedError(ValueError):
    """A picture that could be read and is not; says what to do."""


def _check_pixels(size: tuple[int, int]) -> None:
    if math.prod(size) > LARGEST_PICTURE:
        raise _RefusedError(
            f"{size[0]}x{size[1]} pixels, and {LARGEST_PICTURE // 2**20} million are read at most; cut it"
        )


def _deep(image: Any) -> tuple[Any, int] | None:
    """A picture of one channel of more than 8 bits as floats, and its largest value: Pillow's own conversion
    to 8 bits would cut its values off at 255. None for any other picture.

    Raises ValueError for what has no known largest value (floats beyond 1).
    """
    from PIL import Image

    if image.mode not in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return None
    array = np.array(image).astype(np.float32)
    largest = 1 if image.mode == "F" else 2**16 - 1
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= largest):
        raise _RefusedError(
            f"values beyond 0 ... {largest}; give them as an .npy file, in the range that the model takes"
        )
    return Image.fromarray(array), largest


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


def opened(path: str, inside: str | None) -> IO[bytes]:
    """The file at a place. Raises ValueError for what is too large in an archive."""
    if inside is None:
        return open(path, "rb")
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(inside).file_size > LARGEST:
            raise ValueError("too large")
        return io.BytesIO(archive.read(inside))
