"""The layers against ConvTranspose2d, resize-convolution and sub-pixel convolution, over channels and sizes.

python benchmarks/layers.py --out benchmarks/results/layers_cpu          # writes .json, .txt and .png
python benchmarks/layers.py --quick --compiled
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pixelize.benchmarking.layers import REFERENCE, Case, run_bench

SIZES = {16: (8, 16, 32, 64, 128, 256), 64: (8, 16, 32, 64, 128), 256: (8, 16, 32), 512: (8, 16)}
"""The sizes for each number of channels; what is left out takes seconds for each run on one CPU thread."""
QUICK = {16: (64,), 64: (32,), 256: (16,)}


def main() -> None:
    """Runs the cases and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="path without suffix for .json, .txt and .png")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--kernels", nargs="+", type=int, default=[4, 2])
    parser.add_argument("--compiled", action="store_true", help="torch.compile every contender")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--resume", action="store_true", help="keep the cases that --out has already")
    parser.add_argument("--quick", action="store_true", help="three shapes instead of sixteen")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    cases = [
        Case(channels, size, kernel, train=train, channels_last=last, dtype=dtype, compiled=a.compiled)
        for dtype, kernel, last, train in product(a.dtypes, a.kernels, (False, True), (False, True))
        for channels, sizes in (QUICK if a.quick else SIZES).items()
        for size in sizes
    ]
    random.Random(0).shuffle(cases)  # a machine that grows busy disturbs all shapes alike
    result: dict[str, Any] = {"cases": []}
    if a.resume and a.out and a.out.with_suffix(".json").exists():
        result = json.loads(a.out.with_suffix(".json").read_text())
    there = [entry["case"] for entry in result["cases"]]
    cases = [case for case in cases if asdict(case) not in there]
    end = time.monotonic() + 60 * a.minutes
    while cases and time.monotonic() < end:
        part, cases = cases[:4], cases[4:]
        found = run_bench(part, device=a.device, threads=a.threads, seconds=a.seconds, progress=_tell)
        result = {**found, "cases": result["cases"] + found["cases"]}
        result["cases"].sort(key=lambda entry: order(entry["case"]))
        if a.out:
            a.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    if cases:
        raise SystemExit(f"{len(cases)} cases are left: go on with --resume")
    table = as_table(result)
    Console(width=220).print(table)
    if a.out:
        plot_ratios(result, a.out.with_suffix(".png"))
        with a.out.with_suffix(".txt").open("w") as file:
            Console(file=file, width=220, color_system=None).print(table)


def as_table(result: dict[str, Any]) -> Table:
    """A result of :func:`run_bench` as a rich table: a line for each case, a column of ratios for each
    contender.
    """
    machine = result["machine"]
    names = list(dict.fromkeys(row["contender"] for entry in result["cases"] for row in entry["rows"]))
    table = Table(title=f"{machine['device']}, {machine['threads']} thread(s), {machine['clock']}")
    table.add_column("case")
    table.add_column(f"{names[0]}, ms", justify="right")
    for name in names[1:]:
        table.add_column(name, justify="right")
    for entry in result["cases"]:
        rows = {row["contender"]: row for row in entry["rows"]}
        cells = [f"{rows[n]['ratio']:.2f}" if n in rows else "" for n in names[1:]]
        table.add_row(case_label(entry["case"]), f"{rows[names[0]]['median'] * 1e3:.3g}", *cells)
    return table


def case_label(case: dict[str, Any]) -> str:
    """One case in a few words."""
    layout = "NHWC" if case["channels_last"] else "NCHW"
    words = f"k{case['kernel_size']} {2 * case['channels']}>{case['channels']} at {case['size']}, {layout}"
    words += ", training" if case["train"] else ", prediction"
    words += "" if case["dtype"] == "float32" else f", {case['dtype']}"
    return words + (", compiled" if case["compiled"] else "")


def plot_ratios(result: dict[str, Any], path: str | Path) -> None:
    """Draws the ratio of every contender over the size of the input: a line of panels for each kernel, memory
    format and mode, a panel for each number of channels.
    """
    panels: dict[tuple[Any, ...], dict[int, list[dict[str, Any]]]] = {}
    for entry in result["cases"]:
        case = entry["case"]
        key = (case["kernel_size"], case["channels_last"], case["train"], case["dtype"], case["compiled"])
        panels.setdefault(key, {}).setdefault(case["channels"], []).append(entry)
    widths = sorted({channels for line in panels.values() for channels in line})
    figure = Figure(figsize=(3.6 * len(widths), 2.6 * len(panels) + 0.6), layout="constrained")
    grid = figure.subplots(len(panels), len(widths), squeeze=False, sharey=True)
    for axes, line in zip(grid, panels.values(), strict=True):
        for axis, channels in zip(axes, widths, strict=True):
            entries = sorted(line.get(channels, []), key=lambda e: e["case"]["size"])
            axis.set_visible(bool(entries))
            if not entries:
                continue
            sizes = [e["case"]["size"] for e in entries]
            for number, row in enumerate(entries[0]["rows"][1:], 1):
                ratios = [e["rows"][number]["ratio"] for e in entries]
                axis.plot(sizes, ratios, "o-", ms=3, lw=1, label=row["contender"])
            axis.axhline(1.0, color="black", lw=0.8)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"], minor=False)
            axis.set_yticks([], minor=True)
            axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            kernel, *rest = case_label(entries[0]["case"]).split(", ")
            words = kernel.split()
            axis.set_title(", ".join([f"{words[0]} {words[1]}", *rest]), fontsize=8)
        axes[0].set_ylabel(f"time / {REFERENCE}", fontsize=8)
    for axis in grid[-1]:
        axis.set_xlabel("height and width of the input", fontsize=8)
    handles, names = next(a for a in grid.flatten() if a.get_visible()).get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=80)


def order(case: dict[str, Any]) -> tuple[Any, ...]:
    """What a table of cases is sorted by."""
    names = ("dtype", "kernel_size", "channels_last", "train", "channels", "size")
    return tuple(case[name] for name in names)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
