"""Files of weights by their endings."""

from __future__ import annotations

import os
from pathlib import Path

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.checkpoints.model_folder import read_folder
from pixelize.checkpoints.onnx_file import read_onnx
from pixelize.checkpoints.safetensors_file import read_safetensors
from pixelize.checkpoints.torch_file import read_torch
from pixelize.errors import LoadError

TORCH = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *TORCH, ".onnx")


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The file's tensors. Raises LoadError if there is no such file, or it is damaged or of no known kind."""
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    _check_beginning(path)
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    return read_onnx(path) if path.suffix.lower() == ".onnx" else read_torch(path)


def _check_beginning(path: Path) -> None:
    """Raises LoadError for what downloads leave in the place of a file."""
    try:
        with path.open("rb") as file:
            begins = file.read(64).lstrip().lower()
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror})") from error
    if not begins:
        raise LoadError(f"{path}: an empty file")
    if begins.startswith(b"version https://git-lfs"):
        raise LoadError(f"{path}: a Git LFS pointer and not the file that it stands for; run git lfs pull")
    if begins.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise LoadError(f"{path}: a web page and not the file that its name promises; download it again")


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a file of weights."""
    return Path(name).suffix.lower() in SUFFIXES


def same_kind(path: Path, other: Path) -> bool:
    """Whether two names stand for files of one kind."""
    a, b = (p.suffix.lower() for p in (path, other))
    return a == b or (a in TORCH and b in TORCH)
