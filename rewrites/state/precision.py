"""Arithmetic as exact as a device has it, whatever the process has allowed itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


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


_lock = threading.Lock()
_entered = 0
_former: list[tuple[Any, str, Any]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """In this float32 is float32: no TF32 (torch's default for convolutions on a GPU), no sums in half
    precision, no autocast. All is put back as it was, by the last thread that leaves it.

    These are settings of the process: other threads compute with them too, more exactly and somewhat more
    slowly.
    """
    global _entered
    with ExitStack() as stack:
        with _lock:
            _entered += 1
            stack.callback(_leave)
            if _entered == 1:
                for owner, name, exact in _settings():
                    _former.append((owner, name, getattr(owner, name)))
                    setattr(owner, name, exact)
        # torch 2.6 raises if asked for an accelerator that is not there
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        for kind in {"cpu", accelerator.type if accelerator is not None else "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _leave() -> None:
    global _entered
    with _lock:
        _entered -= 1
        while _entered == 0 and _former:
            setattr(*_former.pop())


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
    found = [part for part in (cuda, *newer) if _has(part, "fp32_precision")]
    if found:
        return [*half, *((part, "fp32_precision", "ieee") for part in found)]
    return [*half, (cuda, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def _has(owner: Any, name: str) -> bool:
    try:
        return hasattr(owner, name)
    except RuntimeError:
        return False
