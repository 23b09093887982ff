"""Every layer against torch's own of the same arguments, in one, two and three dimensions: time, memory,
weights and multiply-adds as ratios.

python benchmarks/layers_nd.py --out benchmarks/results/layers_nd_cpu          # writes .json and .md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import compare_modules

# what torch's layer is, its arguments, and the input's size without the channels
CASES: dict[str, tuple[str, tuple[Any, ...], tuple[int, ...]]] = {
    "ConvTranspose1d 256>128 k16 s8": ("ConvTranspose1d", (256, 128, 16, 8, 4), (128,)),
    "ConvTranspose2d 128>64 k4 s2": ("ConvTranspose2d", (128, 64, 4, 2, 1), (16, 16)),
    "ConvTranspose2d 64>64 k2 s2": ("ConvTranspose2d", (64, 64, 2, 2), (16, 16)),
    "ConvTranspose3d 64>32 k2 s2": ("ConvTranspose3d", (64, 32, 2, 2), (8, 8, 8)),
    "ConvTranspose3d 32>32 k4 s2": ("ConvTranspose3d", (32, 32, 4, 2, 1), (6, 6, 6)),
    "Conv1d 128>128 k7": ("Conv1d", (128, 128, 7, 1, 3), (1024,)),
    "Conv2d 64>64 k3": ("Conv2d", (64, 64, 3, 1, 1), (32, 32)),
    "Conv3d 32>32 k3": ("Conv3d", (32, 32, 3, 1, 1), (10, 10, 10)),
}


def contenders(kind: str, arguments: tuple[Any, ...]) -> dict[str, nn.Module]:
    """torch's layer, and ours of each design."""
    name, axes = kind[:-2], kind[-2:]
    pixel = {"ConvTranspose": "PixelDCL", "Conv": "PixelConv"}[name]
    designs: dict[str, dict[str, Any]] = {
        "paired": {},
        "near": {"schedule": "near"},
        "depthwise": {"dependency_groups": arguments[1]},
    }
    if axes == "2d":
        designs["masked"] = {"schedule": "masked"}
    found = {kind: getattr(nn, kind)(*arguments)}
    for prefix in ("i", ""):
        for design, more in designs.items():
            found[f"{prefix}{pixel}{axes} {design}"] = getattr(pixelize, f"{prefix}{pixel}{axes}")(
                *arguments, **more
            )
    return found


def measure(seconds: float) -> Iterator[dict[str, Any]]:
    """For each case the rows of prediction and of a training step; the results so far, after each case."""
    torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    for case, (kind, arguments, size) in CASES.items():
        torch.manual_seed(0)
        modules = contenders(kind, arguments)
        x = torch.randn(1, arguments[0], *size)
        cases[case] = {
            name: [asdict(row) for row in compare_modules(modules, x, train=train, seconds=seconds)]
            for name, train in (("prediction", False), ("training", True))
        }
        yield {"machine": describe_machine("cpu", 1), "cases": cases}


def as_markdown(result: dict[str, Any]) -> str:
    """A table for each case; every figure is a ratio to torch's layer."""
    lines = ["# Every layer beside torch's own", ""]
    lines += [
        "One CPU thread, batch 1, float32; ratios to torch's layer (medians over rounds, of the thread's CPU"
    ]
    lines += [f"time). {', '.join(f'{k} {v}' for k, v in result['machine'].items())}.", ""]
    for case, found in result["cases"].items():
        lines += [f"## {case}, input {CASES[case][2]}", ""]
        lines += [
            "| layer | prediction | training | memory, predicting | training | weights | multiply-adds |"
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
        plain, plain_training = found["prediction"][0], found["training"][0]
        for p, t in zip(found["prediction"], found["training"], strict=True):
            cells = [p["ratio"], t["ratio"]]
            cells += [
                p["peak_memory"] / plain["peak_memory"],
                t["peak_memory"] / plain_training["peak_memory"],
            ]
            cells += [p[key] / plain[key] for key in ("parameters", "multiply_adds")]
            lines.append(f"| {p['contender']} | " + " | ".join(f"{c:.2f}" for c in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="path without suffix for .json and .md")
    parser.add_argument("--seconds", type=float, default=3.0, help="per case, for each of two tables")
    a = parser.parse_args()
    for result in measure(a.seconds):
        a.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        a.out.with_suffix(".md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
