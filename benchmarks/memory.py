"""Memory of converting in place, inheriting, calibrating and repairing, and of 200 conversions undone.

    python benchmarks/memory.py
    python benchmarks/memory.py --only inherit    # the other rows as they stand in the file

Each row is measured in a process of its own (Linux): resident memory at its highest, less what it was before,
in MiB. Writes ``benchmarks/results/memory.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import pixelize

RESULTS = pathlib.Path(__file__).parent / "results"
CYCLES = 200


def large(width: int) -> nn.Module:
    """Convolutions of ``width`` channels and three up-samplers of few."""
    body = [nn.Conv2d(width, width, 3, padding=1) for _ in range(24)]
    head = [
        nn.ConvTranspose2d(width, 8, 4, 2, 1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 12, 3, padding=1),
    ]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *body, *head, nn.PixelShuffle(2)).eval()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)
    ).eval()


class Batches:
    """``count`` batches, made when they are asked for, again and again."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(8, 6, 8, 8, generator=torch.Generator().manual_seed(index))


def endless() -> Iterator[Tensor]:
    index = 0
    while True:
        yield Batches(index + 1)[index]
        index += 1


DATA: dict[str, Callable[[], Any]] = {
    "10 batches": lambda: Batches(10),
    "10,000 batches": lambda: Batches(10_000),
    "an endless generator": endless,
    "an iterator that yields once": lambda: map(Batches(10).__getitem__, range(10)),
}


def looked_at(how: str, width: int) -> tuple[Any, Callable[[], Any]]:
    model, x = large(width), torch.randn(1, 3, 8, 8)
    act = {
        "inspect": lambda: pixelize.inspect(model, x),
        "convert, in place": lambda: pixelize.convert(model, example_inputs=x, inplace=True),
        "convert, a copy": lambda: pixelize.convert(model, example_inputs=x),
    }
    return model, act[how]


def inherited(layer: str, width: int) -> tuple[Any, Callable[[], Any]]:
    model = nn.Sequential(
        nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ConvTranspose2d(width, width, 4, 2, 1)
    )
    return model, lambda: pixelize.convert(model, layer)


def calibrated(data: str, _: int) -> tuple[Any, Callable[[], Any]]:
    model = pixelize.convert(small(), "pixeldcl")
    return None, lambda: pixelize.calibrate(model, DATA[data](), progress=False)


def repaired(data: str, _: int) -> tuple[Any, Callable[[], Any]]:
    return None, lambda: pixelize.repair(small(), DATA[data](), progress=False)


def cycled(cycles: str, _: int) -> tuple[Any, Callable[[], Any]]:
    model, x = small(), torch.randn(1, 6, 8, 8)

    def cycle() -> None:
        pixelize.revert(pixelize.convert(model, example_inputs=x, inplace=True))

    def act() -> None:
        for _ in range(int(cycles)):
            cycle()

    for _ in range(20):  # what Python and torch keep from their first calls
        cycle()
    return None, act


CASES: dict[str, Callable[[str, int], tuple[Any, Callable[[], Any]]]] = {
    "look": looked_at,
    "inherit": inherited,
    "calibrate": calibrated,
    "repair": repaired,
    "convert and revert": cycled,
}


def resident(key: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process, in MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measured(case: str, what: str, width: int) -> dict[str, Any]:
    """One row, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept, act = CASES[case](what, width)
    if case != "convert and revert":  # the first call of a kind imports and fills what is kept for good
        first = {"look": "inspect", "inherit": what}.get(case, "10 batches")
        CASES[case](first, 8)[1]()
    weights = sum(p.nbytes for p in kept.parameters()) / 2**20 if kept is not None else None
    gc.collect()
    objects, before, started = len(gc.get_objects()), resident("VmRSS"), time.perf_counter()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    result = act()
    peak, seconds = resident("VmHWM") - before, time.perf_counter() - started
    del result
    gc.collect()
    row = dict(zip(("what", "of"), _names(case, what), strict=True)) | {"peak MiB": peak}
    row |= {"weights MiB": weights, "kept MiB": resident("VmRSS") - before, "seconds": seconds}
    return row | {"objects kept": len(gc.get_objects()) - objects}


def _names(case: str, what: str) -> tuple[str, str]:
    return (case, what) if case != "look" else (what, "")


def _cell(value: float | str | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512, help="channels of the model that is converted")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--only", choices=CASES, help="measure this, and keep the other rows of the file")
    arguments = parser.parse_args()
    cases = [("look", how) for how in ("inspect", "convert, in place", "convert, a copy")]
    cases += [("inherit", layer) for layer in ("ipixeldcl", "pixeldcl")]
    cases += [(case, data) for case in ("calibrate", "repair") for data in DATA]
    cases += [("convert and revert", str(n)) for n in (20, CYCLES)]
    context = multiprocessing.get_context("spawn")
    written = json.loads((arguments.out / "memory.json").read_text()) if arguments.only else []
    earlier = {(row["what"], row["of"]): row for row in written}
    rows = []
    for case in cases:
        if arguments.only and case[0] != arguments.only:
            rows.append(earlier[_names(*case)])
            continue
        with context.Pool(1) as pool:
            rows.append(pool.apply(measured, (*case, arguments.width)))
        print(json.dumps(rows[-1]), flush=True)
    head = ["what", "of", "weights MiB", "peak MiB", "kept MiB", "objects kept", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row[key]) for key in head) + " |")
    told = (
        "Resident memory at its highest over what it was before, each row in a process of its own that did "
        f"the same once before (with 10 batches), one thread, torch {torch.__version__}. Of data that may "
        "have no end the first 16,384 samples are read and kept."
    )
    text = f"{told}\n\n    python benchmarks/memory.py\n\n" + "\n".join(lines) + "\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "memory.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "memory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
