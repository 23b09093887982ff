"""Seconds and memory of convert, calibrate and repair over the size of models and of pictures, with slopes.

    python benchmarks/scale.py                 # about ten minutes on one CPU core
    python benchmarks/scale.py --only convert --most 30e6

Decoders of random weights: a convolution to the width, convolutions of that width, and three up-samplers (a
transposed convolution, a resize-convolution, a pixel shuffle). Each point in a process of its own that did
the same with a small model before: seconds of CPU time on one thread, and the highest resident memory beyond
what it was (Linux). A slope is that of log seconds over log size, by least squares: 1 is linear. Repair has a
budget of computing (``RepairLimits.multiply_adds``), at which it stops.
Writes ``results/scale.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.inheritance.cost import count_parameters

RESULTS = Path(__file__).parent / "results"
PARAMETERS = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9)
PIXELS = (64, 128, 256, 512, 1024, 2048)
"""Sides of the pictures that a model makes."""
SIDE = {"convert": 64, "calibrate": 64, "repair": 64}
MANY = 8
"""Samples to calibrate on, and to repair with."""


def decoder(parameters: float) -> nn.Module:
    """(N, 4, H, W) to (N, 3, 8 H, 8 W), of about so many weights; the up-samplers hold a quarter of them."""
    width = max(8, round(math.sqrt(parameters / (9 * 12 + 16 + 9 * 3)) / 4) * 4)
    torch.manual_seed(0)
    body = [m for _ in range(12) for m in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(4, width, 3, padding=1), *body, nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width // 2, 12, 3, padding=1), nn.PixelShuffle(2),
    ).eval()  # fmt: skip


def point(what: str, parameters: float, pixels: int) -> dict[str, Any]:
    """One measurement, in this process."""
    torch.set_num_threads(1)
    work(what, decoder(1e5), torch.randn(MANY, 4, 8, 8))  # imports, and what torch does once
    inputs = torch.randn(MANY, 4, pixels // 8, pixels // 8)
    model = decoder(parameters)
    count = count_parameters(model)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest is counted from here
    before = resident("VmRSS")
    seconds = work(what, model, inputs)
    peak = resident("VmHWM")
    began = time.process_time()
    with torch.no_grad():
        model(inputs[:1])
    forward = time.process_time() - began
    return {
        "what": what, "parameters": count, "pixels": pixels, "seconds": seconds, "forward": forward,
        "MiB": peak - before,
    }  # fmt: skip


def work(what: str, model: nn.Module, inputs: torch.Tensor) -> float:
    """Its seconds of CPU time."""
    began = time.process_time()
    if what == "convert":
        pixelize.convert(model, example_inputs=inputs[:1], inplace=True)
    elif what == "calibrate":
        pixelize.convert(
            model, "pixeldcl", init="calibrate", data=inputs.split(1), example_inputs=inputs[:1], inplace=True
        )
    else:
        pixelize.repair(model, inputs.split(1), inplace=True, progress=False)
    return time.process_time() - began


def resident(name: str) -> float:
    """Resident memory in MiB: ``"VmRSS"`` now, ``"VmHWM"`` at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def slope(rows: list[dict[str, Any]], over: str) -> float:
    """Of log seconds over log size."""
    x, y = (torch.tensor([row[name] for row in rows]).double().log() for name in (over, "seconds"))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def table(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """The rows as Markdown, and the slopes."""
    lines = [
        "# convert, calibrate and repair over sizes",
        "",
        f"{machine['device']}, one thread, CPU time, torch {machine['torch']}; each point once, in a process",
        f"of its own. {MANY} samples to calibrate on (with the conversion to PixelDCL) and to repair with.",
        "MiB: the highest resident memory beyond what it was with the model built. Made by",
        "`benchmarks/scale.py`.",
        "",
        "| what | million parameters | picture | seconds | one forward after it, s | MiB | MiB of weights |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (
            row["what"], f"{row['parameters'] / 1e6:.2f}", f"{row['pixels']}x{row['pixels']}",
            f"{row['seconds']:.2f}", f"{row['forward']:.3f}", f"{row['MiB']:.0f}",
            f"{row['parameters'] * 4 / 2**20:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        small = min(row["pixels"] for row in mine)
        grown = [row for row in mine if row["pixels"] == small]
        least = min(row["parameters"] for row in mine)
        larger = [row for row in mine if row["parameters"] == least]
        told = []
        if len(grown) > 1:
            told.append(f"seconds grow with the parameters to the power {slope(grown, 'parameters'):.2f}")
        if len(larger) > 1:
            told.append(f"with the picture's side to the power {slope(larger, 'pixels'):.2f} (its area: 2)")
        lines += [f"{what}: {', '.join(told)}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(SIDE), choices=SIDE)
    parser.add_argument("--most", type=float, default=1e9, help="parameters")
    parser.add_argument("--widest", type=int, default=2048, help="pictures, in pixels")
    parser.add_argument("--seconds", type=float, default=120, help="after a point as long, no larger ones")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for what in options.only:
        sizes = [(p, PIXELS[0]) for p in PARAMETERS if p <= options.most]
        pictures = [(PARAMETERS[0], side) for side in PIXELS[1:] if side <= options.widest]
        for line in (sizes, pictures):
            for parameters, pixels in line:
                with context.Pool(1) as pool:
                    rows.append(pool.apply(point, (what, parameters, pixels)))
                print(rows[-1], flush=True)
                if rows[-1]["seconds"] > options.seconds:
                    break
    machine = describe_machine("cpu", 1)
    (options.out / "scale.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (options.out / "scale.md").write_text(table(rows, machine))


if __name__ == "__main__":
    main()
