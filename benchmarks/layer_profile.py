"""Where a layer's time goes, from the profiler: convolutions, copies and additions, and all else (calls).

    python benchmarks/layer_profile.py --out benchmarks/results/layer_profile_cpu    # writes .json and .md

Prediction on one CPU thread. The profiler makes every call slower, so its shares are taken, not its times:
the share of ``calls`` is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch
from torch import Tensor, nn

from pixelize.benchmarking.layers import layer_contenders
from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import measure_ceilings
from pixelize.inheritance.cost import multiply_adds

SHAPES = ((16, 8, 4), (16, 64, 4), (64, 32, 4), (256, 16, 4), (16, 64, 2), (64, 64, 2), (256, 16, 2))
CONTENDERS = (
    "ConvTranspose2d",
    "PixelDCL",
    "PixelDCL 2x2",
    "PixelDCL depthwise",
    "iPixelDCL",
    "iPixelDCL depthwise",
)
COPIES = ("copy_", "add", "add_", "cat", "constant_pad_nd", "fill_", "clone", "contiguous")


def profile(module: nn.Module, x: Tensor, runs: int) -> dict[str, Any]:
    """Seconds of one run without the profiler, and the shares and numbers of calls with it."""
    with torch.no_grad():
        for _ in range(3):
            module(x)
        times = []
        for _ in range(runs):
            start = time.thread_time()
            module(x)
            times.append(time.thread_time() - start)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(runs):
                module(x)
    spent = {"convolutions": 0.0, "copies": 0.0, "calls": 0.0}
    convolutions = 0.0
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        # oneDNN's transposed convolution has no name of its own: it runs within _convolution
        works = "mkldnn" in name or "slow_conv" in name or "conv_depthwise" in name or name == "_convolution"
        kind = "convolutions" if works else "copies" if name in COPIES else "calls"
        spent[kind] += event.self_cpu_time_total
        convolutions += event.count / runs if name == "_convolution" else 0
    total = sum(spent.values())
    shares = {kind: value / total for kind, value in spent.items()}
    return {"seconds": sorted(times)[runs // 2], "number_of_convolutions": convolutions, **shares}


def main() -> None:
    """Profiles every layer at every shape and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="path without suffix for .json and .md")
    a = parser.parse_args()
    machine = describe_machine("cpu", 1)
    ceiling = measure_ceilings("cpu", torch.float32)
    result: dict[str, Any] = {"machine": machine, "rows": []}
    lines = [
        f"{machine['device']}, one thread, {machine['clock']}, torch {machine['torch']}, prediction.",
        f"In a matrix product this machine did {ceiling.multiply_adds / 1e9:.0f} G multiply-adds a second.",
        "",
        "| layer | ms | G multiply-adds/s | convolutions | of the time | copies | calls |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (channels, size, kernel), last in product(SHAPES, (False, True)):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(1, 2 * channels, size, size).contiguous(memory_format=layout)
        modules = layer_contenders(channels, kernel)
        for name in CONTENDERS:
            module = modules[name].to(memory_format=layout)
            row = profile(module, x, runs=20 if channels * size < 4096 else 7)
            row["multiply_adds"] = multiply_adds(module, x)
            row.update(layer=name, channels=channels, size=size, kernel_size=kernel, channels_last=last)
            result["rows"].append(row)
            speed = row["multiply_adds"] / row["seconds"] / 1e9
            what = f"k{kernel} {2 * channels}>{channels} at {size}, {'NHWC' if last else 'NCHW'}, {name}"
            cells = [
                what,
                f"{row['seconds'] * 1e3:.3g}",
                f"{speed:.1f}",
                f"{row['number_of_convolutions']:.0f}",
            ]
            cells += [f"{row[kind]:.0%}" for kind in ("convolutions", "copies", "calls")]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if a.out:
        a.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        a.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
