"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside ``path`` for the block to fill, which then takes its place in one step.

    Whoever looks sees the old file or the whole new one. The folder is made if need be. If the block raises,
    or the disk refuses, what was there before stays and nothing else is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        os.close(handle)
        yield Path(name)
        make_public(Path(name))
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def make_public(path: Path) -> None:
    """Gives a file the mode of a new one; ``mkstemp`` and safetensors make theirs the owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_bytes(path: str | os.PathLike[str], contents: bytes) -> Path:
    """Writes ``contents`` to ``path`` in one step: whoever looks sees the old file or the whole new one.

    Returns ``path``. The folder is made if need be. Raises OSError, leaving no file behind, if the disk
    refuses.
    """
    with replacing(path) as file:
        file.write_bytes(contents)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """:func:`write_bytes` of ``text`` as UTF-8."""
    return write_bytes(path, text.encode())
