"""``torch.device("second")``: a device whose tensors do not mix with the CPU's, for machines without a GPU.

:func:`start` compiles ``second_device.cpp`` at first use (some 40 seconds, kept in torch's folder of
extensions) and registers it; it can be done once in a process.
"""

from __future__ import annotations

import os
import shutil
import types
import warnings
from pathlib import Path
from typing import Any

import torch


def missing() -> str | None:
    """Why the device cannot be had here; None if it can."""
    compiler = os.environ.get("CXX", "c++")
    for tool in (compiler, "ninja"):
        if shutil.which(tool) is None:
            return f"the second device is compiled with {tool}, which is not here"
    return None


class _Device(types.ModuleType):
    """What torch asks a device's module for."""

    def __init__(self, compiled: Any) -> None:
        super().__init__("torch.second")
        self.compiled = compiled
        self.seeded = 0

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.seeded += 1
        self.compiled.seed(seed % 2**64)

    def manual_seed(self, seed: int) -> None:
        self.compiled.seed(seed % 2**64)

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return self.compiled.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        self.compiled.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def start() -> _Device:
    """Registers the device and returns its module, ``torch.second``."""
    from torch.utils.cpp_extension import load

    if not hasattr(torch, "second"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a CUDA that is not there
            source = Path(__file__).with_name("second_device.cpp")
            compiled = load("pixelize_second_device", [str(source)], extra_cflags=["-O1", "-w"])
        torch.utils.rename_privateuse1_backend("second")
        compiled.register_hooks()
        torch._register_device_module("second", _Device(compiled))
        torch.utils.generate_methods_for_privateuse1_backend()
    return torch.second
