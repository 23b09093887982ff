"""`pixelize demo`: a trained generator with a checkerboard, converted, shown to be unchanged, and repaired,
with a control beside it.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from pixelize.conversion.convert import convert
from pixelize.conversion.inspect import inspect
from pixelize.conversion.report import report
from pixelize.conversion.saved import save
from pixelize.demo.generator import load_demo_model
from pixelize.files import write_bytes
from pixelize.layers.parameter_groups import param_groups
from pixelize.measure.checkerboard import checkerboard, frequencies, frequency_name
from pixelize.measure.decibels import psnr
from pixelize.measure.notch import clean_target
from pixelize.pages.figures import comparison_figure
from pixelize.refit.repair import repair

POOL = 768
"""Latents that the fine-tuning draws from, and that the repair is fitted to; as many as a few hundred steps
can use."""
HELD_OUT = 256
"""Latents that everything is measured on, none of them trained on."""
BATCH = 16
RATE = 2e-4
PEAK = 2.0
"""The pictures span [-1, 1]."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table: the artifact in dB by frequency (global and windowed), fidelity in dB, and what
    it took.
    """

    name: str
    checkerboard: dict[str, float]
    windowed: dict[str, float]
    psnr_to_original: float | None
    psnr_to_clean: float
    seconds: float | None


def run_demo(
    out: str | os.PathLike[str] = "pixelize-demo",
    *,
    steps: int = 500,
    seed: int = 0,
    pool: int = POOL,
    console: Console | None = None,
) -> list[Outcome]:
    """Inspects, converts, fine-tunes without labels, and repairs the shipped generator; prints a table and
    writes model and picture to ``out``.

    The generator's own pictures, with the checkerboard notched out, are the target. The control is the
    generator as it came, fine-tuned in the same way on the same latents for the same number of steps.

    Args:
        out: folder for ``model/`` and ``repaired/`` (:func:`pixelize.save`), ``comparison.png`` and
            ``results.json``.
        steps: of fine-tuning, for each arm.
        seed: of the latents and of their order.
        pool: how many latents there are to train on and to repair with.

    Returns:
        The rows of the table: before, iPixelDCL, control, repair.
    """
    console = console or Console()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    original = load_demo_model()
    latents = torch.randn(
        pool + HELD_OUT, original.latent_channels, generator=torch.Generator().manual_seed(seed)
    )
    given, held_out = latents[:pool], latents[pool:]

    console.rule("1. A trained generator: what up-samples in it")
    console.print(inspect(original, held_out[:1]).text(console.width), markup=False, highlight=False)

    console.rule("2. Converted: it computes what it computed before")
    converted = convert(original, example_inputs=held_out[:1])
    console.print(report(converted).text(console.width), markup=False, highlight=False)

    console.rule("3. Fine-tuned without labels: its own pictures, notched")
    control = copy.deepcopy(original)
    before, clean = _draw(original, held_out), _draw(original, given)
    wanted, goal = clean_target(before), clean_target(clean)
    seconds = {}
    with Progress(
        TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"), console=console,
    ) as progress:  # fmt: skip
        for name, model in (("iPixelDCL", converted), ("control", control)):
            task = progress.add_task(name, total=steps, loss="")

            def tick(loss: float, task: int = task) -> None:
                progress.update(task, advance=1, loss=f"{loss:.2e}")  # type: ignore[arg-type]

            seconds[name] = _fine_tune(model, given, goal, steps, seed, tick)
    start = time.perf_counter()
    repaired = repair(original, given, progress=False)
    seconds["repair"] = time.perf_counter() - start
    drawn = {"before": before} | {
        name: _draw(model, held_out)
        for name, model in (("iPixelDCL", converted), ("control", control), ("repair", repaired))
    }
    outcomes = [
        _measure(name, pictures, before, wanted, seconds.get(name)) for name, pictures in drawn.items()
    ]
    console.rule("4. What became of the checkerboard")
    console.print(_table(outcomes))
    console.print(
        f"{HELD_OUT} latents that were not trained on. Checkerboard: global / windowed measure in dB; real "
        "faces show "
        "about 0 / -4. PSNR in dB to the original's pictures, and to those with the checkerboard notched "
        "out. "
        f"control: the unconverted model after the same {steps} steps. repair: pixelize.repair(model, "
        "latents), "
        "no labels, no training.",
        highlight=False,
    )
    save(converted, out / "model", source="demo")
    save(repaired, out / "repaired", source="demo")
    picture = comparison_figure(drawn, "before", out / "comparison.png")
    write_bytes(out / "results.json", (json.dumps([asdict(o) for o in outcomes], indent=1) + "\n").encode())
    console.print(
        f"\nWrote the converted model to {out / 'model'}, the repaired one to {out / 'repaired'} and the "
        f"picture to {picture}",
        highlight=False,
    )
    return outcomes


def _draw(model: nn.Module, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(z) for z in latents.split(64)])


def _fine_tune(
    model: nn.Module, latents: Tensor, goal: Tensor, steps: int, seed: int, tick: Callable[[float], None]
) -> float:
    """Adam on the squared distance to ``goal``, warmed up and decayed; returns the seconds taken."""
    start = time.perf_counter()
    groups = param_groups(model, RATE)
    optimizer = torch.optim.Adam(groups)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm, 0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / steps)).item())),
    )
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(latents), (BATCH,), generator=order)
        loss = F.mse_loss(model(latents[rows]), goal[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        tick(loss.item())
    return time.perf_counter() - start


def _measure(name: str, pictures: Tensor, original: Tensor, wanted: Tensor, seconds: float | None) -> Outcome:
    levels = checkerboard(pictures)
    by_form = [
        {frequency_name(f): float(levels[form][f]) for f in frequencies(2)} for form in ("global", "windowed")
    ]
    fidelity = None if pictures is original else psnr([original], [pictures], PEAK)
    return Outcome(name, by_form[0], by_form[1], fidelity, psnr([wanted], [pictures], PEAK), seconds)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for f in frequencies(2):
        table.add_column(f"dB at\n{frequency_name(f)}", justify="right", no_wrap=True)
    table.add_column("PSNR to\nbefore", justify="right")
    table.add_column("to\nclean", justify="right")
    table.add_column("time, s", justify="right")
    for o in outcomes:
        table.add_row(
            o.name,
            *(f"{o.checkerboard[f]:.1f} / {o.windowed[f]:.1f}" for f in o.checkerboard),
            "" if o.psnr_to_original is None else f"{o.psnr_to_original:.1f}",
            f"{o.psnr_to_clean:.1f}",
            "" if o.seconds is None else f"{o.seconds:.0f}",
        )
    return table
