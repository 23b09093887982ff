"""What the figures of a timing depend on: the machine, its software and its clock."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Sets the number of CPU threads and names the machine, the software and the clock."""
    torch.set_num_threads(threads)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    cpu_time = not device.startswith("cuda") and threads == 1
    return {
        "device": name,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "clock": "CPU time of the thread" if cpu_time else "wall clock",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
