"""A folder or a zip archive, seen the same way: names of files, and the bytes or the picture behind each."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from pixelize.errors import ArgumentError

LARGEST_FILE = 2**29
"""Bytes of one file of an archive, unpacked, at most."""
LARGEST_PICTURE = 2**27
"""Pixels of a picture at most."""
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Files:
    """The files under a folder or in a zip; ``names`` are relative with ``/``, sorted, hidden ones left out.

    Raises ArgumentError if there is no such folder or zip.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        if self.root.is_dir():
            names = [p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()]
        elif self.root.is_file():
            try:
                names = [i.filename for i in self._zip().infolist() if not i.is_dir()]
            except zipfile.BadZipFile as error:
                raise ArgumentError(
                    f"{self.root}: neither a folder nor a zip archive ({error}); give --data one of them"
                ) from error
        else:
            raise ArgumentError(f"{self.root}: no such folder or zip archive")
        self.names = sorted(
            n for n in names if not any(part.startswith((".", "__MACOSX")) for part in n.split("/"))
        )

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != os.getpid():  # a worker process opens its own
            self._archive = (os.getpid(), zipfile.ZipFile(self.root))
        return self._archive[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}

    def pictures(self) -> list[str]:
        """The names that look like pictures."""
        return [n for n in self.names if n.lower().endswith(PICTURES)]

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises ArgumentError if an archive's is larger than any picture."""
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        if (size := self._zip().getinfo(name).file_size) > LARGEST_FILE:
            raise ArgumentError(f"{self.root}/{name}: {size} bytes unpacked; no picture is so large")
        return self._zip().read(name)

    def open(self, name: str) -> Image.Image:
        """The picture, its header read. Raises ArgumentError, naming it, if it is none."""
        try:
            image = Image.open(io.BytesIO(self.read(name)))
            if math.prod(image.size) > LARGEST_PICTURE:
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels are too many")
            return image
        except ArgumentError:
            raise
        except (
            OSError, ValueError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile,
            Image.DecompressionBombError,
        ) as error:  # fmt: skip
            raise ArgumentError(f"{self.root}/{name}: not a readable picture ({error})") from error

    def decode(self, name: str, mode: str | None = None) -> Image.Image:
        """The picture, decoded, in PIL's ``mode`` where one is given. Raises ArgumentError, naming it, if it
        cannot be.
        """
        picture = self.open(name)
        try:
            picture.load()
            return picture if mode is None else picture.convert(mode)
        except (OSError, ValueError, SyntaxError) as error:
            raise ArgumentError(f"{self.root}/{name}: not a readable picture ({error})") from error


def as_array(picture: Image.Image) -> np.ndarray:
    """A picture as uint8 or int ``(H, W)`` or ``(H, W, C)``, a copy."""
    return np.array(picture)
