"""Checkpoints: one safetensors file with the plain data as JSON in its header, replaced atomically. Nothing
is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixelize.errors import LoadError, PixelizeError
from pixelize.files import replacing


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes ``tensors`` and ``state`` (plain data) to ``path``: whoever is interrupted, the file is the old
    one or the new one, whole.

    Raises PixelizeError if the disk refuses; the old file is then untouched.
    """
    copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    try:
        with replacing(path) as part:
            save_file(copies, part, metadata={"state": json.dumps(state)})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        kept = "the checkpoint before it is untouched" if path.exists() else "nothing was there before"
        raise PixelizeError(f"{path}: it could not be written ({error}); {kept}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` wrote. Raises LoadError if the file is something else."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path}: not a checkpoint of a recipe ({error}); --fresh begins anew") from error


def check_room(folder: Path, tensors: dict[str, Tensor], runs: int = 1) -> None:
    """Makes ``folder``. Raises PixelizeError if it cannot be made, or if its disk cannot hold what so many
    ``runs`` that train these tensors leave at the least: the best weights and a checkpoint, of three times
    their size with Adam's two moments; and one checkpoint more, since the new one is written beside the old.
    """
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PixelizeError(f"--out: {folder} cannot be made ({error.strerror}); choose another") from error
    needed = ((1 + 3) * runs + 3) * size + 2**20
    if free < needed:
        raise PixelizeError(
            f"{folder}: {free / 2**20:.0f} MiB free, and checkpoints need about "
            f"{needed / 2**20:.0f} MiB (runs: {runs}); make room, or choose another --out"
        )


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix/``."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`prefixed` put there."""
    return {n.removeprefix(prefix + "/"): t for n, t in tensors.items() if n.startswith(prefix + "/")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An Adam-like optimizer's state (tensors only) as ``<parameter>/<name>``; rates follow from the step and
    are not kept.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{i}/{key}": torch.as_tensor(value) for i, values in state.items() for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
