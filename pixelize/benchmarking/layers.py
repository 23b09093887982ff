"""The layers beside their peers: which are compared, on which inputs, and how they fared, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import compare_modules, measure_ceilings
from pixelize.layers.pixel_dcl import PixelDCL2d, iPixelDCL2d

REFERENCE = "ConvTranspose2d"


@dataclass(frozen=True)
class Case:
    """One comparison: a layer of 2 * ``channels`` to ``channels`` on (batch, 2 * channels, size, size),
    up-sampled twice.
    """

    channels: int
    size: int
    kernel_size: int = 4
    batch: int = 1
    train: bool = False
    channels_last: bool = False
    dtype: str = "float32"
    compiled: bool = False


def layer_contenders(channels: int, kernel_size: int) -> dict[str, nn.Module]:
    """The up-samplers that are compared, 2 * ``channels`` to ``channels``, twice the size. The first is the
    reference.
    """
    c, k = channels, kernel_size
    geometry = (2 * c, c, k, 2, (k - 2) // 2)
    return {
        REFERENCE: nn.ConvTranspose2d(*geometry),
        "resize + conv 3x3": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * c, c, 3, padding=1)),
        "sub-pixel conv 3x3": nn.Sequential(nn.Conv2d(2 * c, 4 * c, 3, padding=1), nn.PixelShuffle(2)),
        "PixelDCL": PixelDCL2d(*geometry),
        "PixelDCL masked": PixelDCL2d(*geometry, schedule="masked"),
        "PixelDCL 2x2": PixelDCL2d(*geometry, dependency_kernel_size=2),
        "PixelDCL depthwise": PixelDCL2d(*geometry, dependency_groups=c),
        "iPixelDCL": iPixelDCL2d(*geometry),
        "iPixelDCL 2x2": iPixelDCL2d(*geometry, dependency_kernel_size=2),
        "iPixelDCL depthwise": iPixelDCL2d(*geometry, dependency_groups=c),
    }


def run_bench(
    cases: Iterable[Case],
    *,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 2.0,
    contenders: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs each case and returns plain data: the machine, its ceilings, and for each case its rows.

    ``seconds``: how long a case is repeated, at least five rounds. ``contenders``: names of
    :func:`layer_contenders`, all by default; the reference is always among them.
    ``progress`` is called with a line for each case.
    """
    cases = list(cases)
    result: dict[str, Any] = {"machine": describe_machine(device, threads), "cases": []}
    ceilings = {
        dtype: measure_ceilings(device, getattr(torch, dtype)) for dtype in sorted({c.dtype for c in cases})
    }
    result["ceilings"] = {dtype: asdict(c) for dtype, c in ceilings.items()}
    for case in cases:
        torch.manual_seed(0)
        modules = layer_contenders(case.channels, case.kernel_size)
        if contenders is not None:
            modules = {n: m for n, m in modules.items() if n == REFERENCE or n in contenders}
        memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
        place: dict[str, Any] = dict(
            device=device, dtype=getattr(torch, case.dtype), memory_format=memory_format
        )
        modules = {n: m.to(**place) for n, m in modules.items()}
        x = torch.randn(case.batch, 2 * case.channels, case.size, case.size).to(**place)
        rows = compare_modules(
            modules,
            x,
            train=case.train,
            compiled=case.compiled,
            seconds=seconds,
            ceilings=ceilings[case.dtype],
        )
        result["cases"].append({"case": asdict(case), "rows": [asdict(row) for row in rows]})
        if progress is not None:
            progress(f"{case}: " + ", ".join(f"{r.contender} {r.ratio:.2f}" for r in rows))
    return result
