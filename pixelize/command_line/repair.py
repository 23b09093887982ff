"""``pixelize repair`` and ``pixelize apply``: a file goes in, and the same kind of file comes out."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from pixelize.checkpoints.formats import read_checkpoint, same_kind
from pixelize.checkpoints.patch import patched
from pixelize.command_line.options import (
    AsJson,
    ModelOptions,
    check_writable,
    print_error,
    print_json,
    print_text,
    progress,
    runnable,
    takes_model,
)
from pixelize.conversion.saved import save
from pixelize.conversion.saved_folder import read_plan
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.inheritance.record import converted_modules
from pixelize.measure.natural import NOTICEABLE
from pixelize.pages.measuring import measure
from pixelize.pages.page import write_findings
from pixelize.refit.repair import repair
from pixelize.refit.report import RepairReport, repair_report
from pixelize.running.batches import samples_of, selected
from pixelize.sources.models import portable_source
from pixelize.sources.opened import OpenedModel
from pixelize.sources.written import Written, check_out, onnx_difference, write_repaired

NOTHING, COULD_NOT = 3, 4
SHOWN = 16
"""Samples on the page."""
LONGEST = 8
"""Period that the page is measured at, at most."""
IMPORTED = 1e-3
"""Relative error between a graph in onnxruntime and as it was read, at most; 30 times it in float16."""


@takes_model()
def repair_command(
    options: ModelOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="What to write: the kind of file or folder that MODEL is. Beside it go a patch "
            "(.patch.safetensors) and a page (.html).",
        ),
    ],
    count: Annotated[
        int, typer.Option(min=2, help="Pictures, crops of them, sounds or latents to fit on.")
    ] = 256,
    crop: Annotated[
        int,
        typer.Option(min=16, help="Pictures larger than this, or of several sizes, are cut to crops of it."),
    ] = 128,
    patch: Annotated[bool, typer.Option("--patch/--no-patch", help="Write the patch.")] = True,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Write the page (of pictures).")] = True,
) -> None:
    """Take the checkerboard out of a model's file: the same keys, types and everything else, other numbers in
    the layers that make it. Nothing is trained, and no labels are needed.

    Exit codes: 0 repaired and written; 3 nothing to repair, and 4 it could not be done (both say why and
    write nothing); 1 refused or failed.

    Examples:

    - `pixelize repair 4x_mine.pth --data photos/ --out 4x_repaired.pth`

    - `pixelize repair netG.pth --arch networks.py:Generator --data photos.zip --out netG_repaired.pth`

    - `pixelize repair sd/vae --data photos/ --out sd/vae-repaired`

    - `pixelize repair detector.onnx --data pages/ --scale imagenet --out repaired.onnx`

    - `pixelize repair codec.pth --arch codec.py:Codec --data speech/ --out repaired.pth`

    - `pixelize repair unet3d.pth --arch networks.py:UNet3d --data volumes/ --out repaired.pth`
    """  # fmt: skip
    with progress("reading the model") as tell:
        opened = options.open()
        check_out(opened, out)
        check_writable(out)
        tell("reading the data")
        samples, told = options.read(opened, count, crop)
        samples = runnable(opened.model, samples)
        if out.suffix.lower() == ".onnx":
            _check_import(opened, samples[0])
    if not options.as_json:
        print_text(f"{options.model}: {opened.told}", f"data: {told}")
    if not opened.trained:
        print_error("warning: the model's weights are random: --weights fills it with a checkpoint")
    if not options.data and "pictures" in told:
        print_error("note: no --data: drawn pictures are no real ones; the fit is only as good as they are")
    repaired = repair(opened.model, samples, progress=sys.stderr.isatty())
    done = repair_report(repaired)
    verdict, code = _verdict(done)
    result: dict[str, Any] = {
        "model": options.model,
        "what": opened.told,
        "data": told,
        "verdict": verdict,
        "exit_code": code,
        "repair": done.to_dict(),
    }
    written = Written([], [], 0, 0.0)
    if code == 0:
        with progress("writing") as tell:
            written = _write(opened, repaired, out, samples[0], patch, done, options.source)
            if page and done.made == "pictures":
                tell("drawing")
                real, period = options.data is not None, _page_period(done)
                written.files.extend(_page(opened, repaired, samples, out, told, real, period))
        result["files"] = [str(path) for path in written.files]
        result["tensors"] = written.tensors
        result["checks"] = written.checks
    if options.as_json:
        print_json(result)
    else:
        _print(done, verdict, written)
    if code:
        raise typer.Exit(code)


def apply_command(
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="What `pixelize repair` wrote beside FILE.")],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The file or folder that it was made for.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="What to write: the kind of file that MODEL is.")],
    as_json: AsJson = False,
) -> None:
    """Put a patch into the model that it was made for. A patch of another model is refused.

    The model may be kept in another kind of file, under other names and with other things beside it: each of
    its tensors is found by its hash.

    Example: `pixelize apply 4x_repaired.patch.safetensors 4x_mine.pth --out 4x_repaired.pth`
    """
    checkpoint = read_checkpoint(model)
    if model.is_dir() == bool(out.suffix) or not (model.is_dir() or same_kind(model, out)):
        raise ArgumentError(f"{out}: --out has to be of MODEL's kind, as {model.name} is")
    values = patched(patch, checkpoint)
    files = checkpoint.write(out, values)
    if as_json:
        print_json({"files": [str(f) for f in files], "tensors": list(values)})
    else:
        print_text(f"{len(values)} of {len(checkpoint.tensors)} tensors changed: {', '.join(values)}")
        print_text(f"wrote {', '.join(map(str, files))}")


def _check_import(opened: OpenedModel, example: Any) -> None:
    """Raises PixelizeError if the graph does something else in PyTorch than in onnxruntime."""
    assert opened.checkpoint is not None
    error = onnx_difference(opened.checkpoint.path, opened.model, example)
    half = any(p.dtype == torch.float16 for p in opened.model.parameters())
    if error is None:
        print_error("note: onnxruntime is not installed: the graph is not checked against it")
    elif not error <= (30 if half else 1) * IMPORTED:
        raise PixelizeError(
            f"{opened.checkpoint.path}: read as a PyTorch model it differs from what onnxruntime makes of it "
            f"(relative error {error:.2g}), so that no repair of it could be trusted"
        )


def _verdict(done: RepairReport) -> tuple[str, int]:
    """In a sentence or two, and as an exit code."""
    if done.repaired or done.clean:
        return done.verdict(), 0 if done.repaired else NOTHING
    return f"{done.verdict()} What may help: {_help(done)}.", COULD_NOT


def _help(done: RepairReport) -> str:
    few = done.samples and done.samples < 64
    more = f"more {done.made} (--count, --data)" if few else f"other {done.made}, larger ones"
    more += " (--crop)" if not few and done.made == "pictures" else ""
    return (
        f"{more}; pixelize diagnose MODEL, which tells what makes the pattern; or training: "
        "pixelize finetune repair"
    )


def _write(
    opened: OpenedModel,
    repaired: nn.Module,
    out: Path,
    example: Any,
    patch: bool,
    done: RepairReport,
    source: str,
) -> Written:
    if opened.checkpoint is None and (not out.suffix or converted_modules(repaired)):
        name: str | None = opened.name
        if Path(opened.name).is_dir():
            name = source or read_plan(Path(opened.name)).source
        written = save(repaired, out, source=portable_source(name) if name else None)
        return Written([written], [s.name for s in done.repaired], 0, 0.0)
    beside = out.with_name(f"{out.stem}.patch.safetensors") if patch else None
    about = {"model": opened.told, "before": done.before, "after": done.after}
    return write_repaired(opened, repaired, out, example, beside, about)


def _page(
    opened: OpenedModel,
    repaired: nn.Module,
    samples: list[Any],
    out: Path,
    told: str,
    real: bool,
    period: int | None,
) -> list[Path]:
    chosen: list[Any] = []
    for batch in samples:
        room = SHOWN - sum(map(samples_of, chosen))
        if room > 0:
            chosen.append(selected(batch, slice(0, room), samples_of(batch)))
    shapes = {tuple(b.shape[1:]) for b in chosen if isinstance(b, Tensor)}
    if len(shapes) > 1:
        chosen = [b for b in chosen if isinstance(b, Tensor) and tuple(b.shape[1:]) == min(shapes)]
    findings = measure(
        {"before": opened.model, "repaired": repaired}, chosen, title=out.name, told=f"{told}; shown: "
        f"{sum(map(samples_of, chosen))}", period=period,
    )  # fmt: skip
    if not real:
        findings.notes.append("These inputs were drawn; the repair was fitted on such inputs too.")
    page = out.with_suffix(".html") if out.suffix else Path(f"{out}.html")
    return write_findings(findings, page, pngs=False)


def _page_period(done: RepairReport) -> int | None:
    """The period that all noticeable frequencies belong to; None for the page's own choice."""
    noticed = [f for levels in done.before.values() for f, level in levels.items() if level >= NOTICEABLE]
    parts = [Fraction(part).denominator for f in noticed for part in f.strip("()").split(",")]
    period = math.lcm(*parts)
    return period if 1 < period <= LONGEST else None


def _print(done: RepairReport, verdict: str, written: Written) -> None:
    print_text(*done.levels(), verdict)
    if done.repaired:
        print_text(*done.remarks())
    if written.total:
        print_text(f"{len(written.tensors)} of {written.total} tensors differ: {', '.join(written.tensors)}")
    for check in written.checks:
        print_text(check)
    if written.files:
        print_text(f"wrote {', '.join(map(str, written.files))}")
