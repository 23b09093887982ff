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

from rich.console import Console

from pixelize.benchmarking.timing import Case, as_table, plot_ratios, run_bench, save_result

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
            save_result(result, a.out.with_suffix(".json"))
    if cases:
        raise SystemExit(f"{len(cases)} cases are left: go on with --resume")
    table = as_table(result)
    Console(width=220).print(table)
    if a.out:
        plot_ratios(result, a.out.with_suffix(".png"))
        with a.out.with_suffix(".txt").open("w") as file:
            Console(file=file, width=220, color_system=None).print(table)


def order(case: dict[str, Any]) -> tuple[Any, ...]:
    """What a table of cases is sorted by."""
    names = ("dtype", "kernel_size", "channels_last", "train", "channels", "size")
    return tuple(case[name] for name in names)


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
