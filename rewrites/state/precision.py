"""Arithmetic as exact as a device has it, whatever the process has allowed itself."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pixelize.rewrites.state.all_or_nothing import undone_on_failure


def float64(tensor: Tensor) -> Tensor:
    """``tensor`` in float64, where it lies; on the CPU if its device has no such type (Apple's)."""
    try:
        return tensor.double()
    except (TypeError, RuntimeError):
        return tensor.cpu().double()


def zeros64(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Zeros in float64 on ``device``, or on the CPU if that has no such type."""
    try:
        return torch.zeros(shape, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.zeros(shape, dtype=torch.float64, device="cpu")


_lock = threading.RLock()
_inside: set[int] = set()
_former: list[tuple[Any, str, Any]] = []


class full_precision:
    """In this float32 is float32: no TF32 (torch's default for convolutions on a GPU), no sums in half
    precision, no autocast. All is put back as it was, by the last thread that leaves it.

    These are settings of the process: other threads compute with them too, more exactly and somewhat more
    slowly.
    """

    def __enter__(self) -> None:
        # torch 2.6 raises if asked for an accelerator that is not there
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        kinds = {"cpu", accelerator.type if accelerator is not None else "cpu"}
        self._autocast = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
        self._told = undone_on_failure(self._leave)
        with _lock:
            if not _inside:
                _former[:] = [(owner, name, getattr(owner, name)) for owner, name, _ in _settings()]
            _inside.add(id(self))
            for owner, name, exact in _settings():
                setattr(owner, name, exact)
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)

    def __exit__(self, *_: object) -> None:
        self._leave()
        self._told()

    def _leave(self) -> None:
        for kind, enabled in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        with _lock:
            _inside.discard(id(self))
            if not _inside:
                for setting in _former:
                    setattr(*setting)
        with suppress(RuntimeError):  # this thread holds it still if it was interrupted as it let go of it
            while True:
                _lock.release()


def _settings() -> list[tuple[Any, str, Any]]:
    """Where torch keeps what float32 may be computed with, and the exact choice. The newer names, where torch
    has them: it refuses to have both read.
    """
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    half = [
        (cuda, name, False)
        for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    ]
    newer = [
        getattr(getattr(torch.backends, owner, None), part, None)
        for owner in ("cudnn", "mkldnn")
        for part in ("conv", "rnn", "matmul")
    ]
    parts = [part for part in (cuda, *newer) if _has(part, "fp32_precision")]
    if parts:
        return [*half, *((part, "fp32_precision", "ieee") for part in parts)]
    return [*half, (cuda, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def _has(owner: Any, name: str) -> bool:
    try:
        return hasattr(owner, name)
    except RuntimeError:
        return False
