"""A GPU's first minutes: is everything right on it, and how fast is it?

    python benchmarks/gpu.py --out benchmarks/results/gpu            # under eight minutes
    python benchmarks/gpu.py --out runs/gpu --device cpu --minutes 2  # the rehearsal

Writes one JSON file for each part, named for the device, and a summary: ``correct`` (layers against float64),
``convert`` (whole models under the arithmetic that torch has by default, and a repair), ``recipes`` (a few
steps of each), ``layers`` and ``models`` (times, as ratios to what a user would otherwise have). A part that
fails is written down with its error and the others go on. Parts run in this order until the time is up.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from models import MODELS
from torch import nn
from written import command

import pixelize
from pixelize.benchmarking.layers import Case, layer_contenders, run_bench
from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import compare_modules
from pixelize.files import write_text
from pixelize.rewrites.state.precision import full_precision
from pixelize.running.outputs import relative_error

BOTH = (False, True)
ARITHMETICS = ("float32", "tf32", "bfloat16")


class TimeIsUp(Exception):
    """Raised by a part that has used its time; what it has found by then is kept."""


def correct(device: str, left: Callable[[], float], rows: list[dict[str, Any]]) -> None:
    """Output and gradients of every layer against the same layer in float64 on the CPU."""
    for channels, size in ((16, 9), (64, 32)):
        contenders = layer_contenders(channels, 4)
        x = torch.randn(2, 2 * channels, size, size + 1, generator=torch.Generator().manual_seed(0))
        for name, layer in contenders.items():
            expected = _output_and_gradients(layer.double(), x.double())
            for arithmetic, last, compiled in product(ARITHMETICS, BOTH, BOTH):
                if left() < 0:
                    raise TimeIsUp
                dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
                place: dict[str, Any] = dict(device=device, dtype=dtype)
                place["memory_format"] = torch.channels_last if last else torch.contiguous_format
                module: Any = layer.to(**place)
                run = torch.compile(module) if compiled else module
                with _arithmetic(arithmetic):
                    found = _output_and_gradients(run, x.to(**place))
                errors = [relative_error(a, b.cpu()) for a, b in zip(expected, found, strict=True)]
                rows.append(
                    {"layer": name, "channels": channels, "size": size, "arithmetic": arithmetic,
                     "channels_last": last, "compiled": compiled, "output": errors[0],
                     "gradients": max(errors[1:])}
                )  # fmt: skip
                torch.compiler.reset()


def convert(device: str, left: Callable[[], float], rows: list[dict[str, Any]]) -> None:
    """Conversions under torch's default arithmetic, in place, and a repair of the package's generator."""
    for name in MODELS:
        try:
            modules, x = MODELS[name]()
        except ImportError as error:
            rows.append({"model": name, "left_out": str(error)})
            continue
        model = next(iter(modules.values())).to(device).eval()
        for layer in ("ipixeldcl", "dcl"):
            if left() < 0:
                raise TimeIsUp
            start = time.perf_counter()
            try:
                converted = pixelize.convert(model, layer, example_inputs=x.to(device))
                told = {"error": pixelize.report(converted).error}
            except pixelize.PixelizeError as error:
                told = {"refused": str(error).splitlines()[0]}
            rows.append({"model": name, "layer": layer, "seconds": time.perf_counter() - start, **told})
    from pixelize.demo.generator import load_demo_model

    model, latents = load_demo_model().to(device), torch.randn(256, 64, device=device)
    start = time.perf_counter()
    repaired = pixelize.repair(model, latents, progress=False)
    with torch.no_grad():
        fresh = torch.randn(256, 64, device=device)
        levels = {
            "before": pixelize.checkerboard(model(fresh)),
            "after": pixelize.checkerboard(repaired(fresh)),
        }
    rows.append(
        {"model": "generator", "repair": {k: v["worst"] for k, v in levels.items()},
         "seconds": time.perf_counter() - start}
    )  # fmt: skip


def recipes(device: str, left: Callable[[], float], rows: list[dict[str, Any]]) -> None:
    """A few steps of every recipe, in float32 and in bfloat16."""
    import importlib

    from pixelize.recipes.command import RECIPES

    for (name, settings), precision in product(RECIPES.items(), ("no", "bf16")):
        if left() < 0:
            raise TimeIsUp
        small: dict[str, Any] = dict(steps=4, batch=4, warmup=1, eval_every=2, limit=16, precision=precision)
        small |= dict(cpu=device == "cpu", size=32) if name != "repair" else dict(cpu=device == "cpu")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            importlib.import_module(f"pixelize.recipes.{name}").run(settings(out=folder, **small))
        rows.append({"recipe": name, "precision": precision, "seconds": time.perf_counter() - start})


def layers(device: str, left: Callable[[], float], rows: list[dict[str, Any]]) -> None:
    """Every layer against ConvTranspose2d, resize-convolution and sub-pixel convolution."""
    shapes = ((256, 16), (64, 64), (512, 16), (128, 64))
    for compiled, dtype, train, last in product(
        (False, True), ("float32", "bfloat16"), (False, True), (False, True)
    ):
        for channels, size in shapes:
            if left() < 0:
                raise TimeIsUp
            case = Case(channels, size, 4, 8, train, last, dtype, compiled)
            rows += run_bench([case], device=device, threads=torch.get_num_threads(), seconds=0.5)["cases"]


def models(device: str, left: Callable[[], float], rows: list[dict[str, Any]]) -> None:
    """Whole models, converted, against the originals."""
    for name, dtype, compiled, train in product(
        MODELS, ("float32", "bfloat16"), (False, True), (False, True)
    ):
        if left() < 0:
            raise TimeIsUp
        try:
            modules, x = MODELS[name]()
        except ImportError:
            continue
        place: dict[str, Any] = dict(device=device, dtype=getattr(torch, dtype))
        chosen = {n: m.to(**place).train(train) for n, m in modules.items()}
        found = compare_modules(chosen, x.to(**place), train=train, compiled=compiled, seconds=1.0)
        rows.append(
            {"model": name, "dtype": dtype, "compiled": compiled, "train": train,
             "rows": [asdict(row) for row in found]}
        )  # fmt: skip


PARTS = {"correct": correct, "convert": convert, "recipes": recipes, "layers": layers, "models": models}
SHARES = {"correct": 0.2, "convert": 0.15, "recipes": 0.15, "layers": 0.25, "models": 0.25}


def main() -> None:
    """Runs the parts and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    machine = describe_machine(a.device, torch.get_num_threads())
    name = re.sub(r"\W+", "-", machine["device"].lower()).strip("-")
    a.out.mkdir(parents=True, exist_ok=True)
    total = sum(SHARES[part] for part in a.parts)
    spare = 0.0
    for part in a.parts:
        end = time.monotonic() + 60 * a.minutes * SHARES[part] / total + spare
        rows: list[dict[str, Any]] = []
        state = "complete"
        try:
            PARTS[part](a.device, lambda end=end: end - time.monotonic(), rows)
        except TimeIsUp:
            state = "time was up"
        except Exception as error:
            state = "".join(traceback.format_exception_only(error)).strip()
        spare = max(0.0, end - time.monotonic())
        result = {"command": command(), "machine": machine, "state": state, "rows": rows}
        write_text(a.out / f"{name}-{part}.json", json.dumps(result, indent=1) + "\n")
        print(f"{part}: {len(rows)} rows, {state}", flush=True)


def _output_and_gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [leaf, *parameters], direction)]


@contextmanager
def _arithmetic(name: str) -> Iterator[None]:
    """float32 as it is written, or with TF32 in convolutions and products."""
    if name == "float32":
        with full_precision():
            yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    former = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = former


if __name__ == "__main__":
    main()
