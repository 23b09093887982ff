"""``pixelize report``: run a model and what became of it, measure, and write the page."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from pixelize.command_line.options import (
    Count,
    ModelOptions,
    check_writable,
    moved,
    print_json,
    print_text,
    progress,
    runnable,
    takes_model,
)
from pixelize.conversion.convert import convert
from pixelize.conversion.report import Report, report
from pixelize.conversion.saved_plan import PLAN
from pixelize.errors import ArgumentError, NothingToConvertError, PixelizeError
from pixelize.inheritance.record import converted_modules
from pixelize.measure.checkerboard import as_periods, frequency_name
from pixelize.pages.figures import Curves
from pixelize.pages.findings import Findings
from pixelize.pages.measuring import measure
from pixelize.pages.page import write_findings
from pixelize.refit.repair import repair
from pixelize.refit.report import repair_report
from pixelize.running.inputs import one_sample, whole_inputs
from pixelize.sources.inputs import read_inputs
from pixelize.sources.opened import OpenedModel, open_model
from pixelize.tables import Table

REPAIR_SAMPLES = 512


@takes_model()
def report_command(
    options: ModelOptions,
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AFTER",
            help="What to compare it with: 'repaired', 'converted', or the name of another model or folder. "
            "By default 'repaired'; 'none' for the model alone.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The HTML file; PNGs are written beside it.")
    ] = Path("report.html"),
    count: Count = 64,
    period: Annotated[int, typer.Option(help="Of the checkerboard; 0: the last up-sampler's stride.")] = 0,
    natural: Annotated[
        str, typer.Option(metavar="FOLDER", help="Real pictures of the same kind, to compare levels with.")
    ] = "",
    training: Annotated[
        str, typer.Option(metavar="FILE", help="results.json of a finetune run: its curves are drawn.")
    ] = "",
    title: Annotated[str, typer.Option(help="Heading of the page; the model's name by default.")] = "",
    pngs: Annotated[bool, typer.Option("--png/--no-png", help="Write the PNGs too.")] = True,
    fail_above: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Exit with 3 if the last variant's worst level is above this."),
    ] = None,
) -> None:
    """Does a model leave checkerboards, where do they come from, and did they go? Numbers, pictures, a page.

    Examples:

    - `pixelize report demo repaired --out demo.html`

    - `pixelize report smp:Linknet --weights before.pt finetuned/ --data photos/ --size 256`

    - `pixelize report my_models.py:generator none --natural faces/ --fail-above 3`
    """
    if out.is_dir():
        out = out / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"{out}: --out names an .html file")
    check_writable(out)
    curves = read_curves(training) if training else None
    if period:
        as_periods(period)
    with progress("building the model") as tell:
        opened = options.open()
        built = opened.model
        samples, told = options.read(opened, count)
        real = [x for x in read_inputs([natural]) if isinstance(x, Tensor)] if natural else None
        folder = Path(options.model)
        named: dict[str, nn.Module] = {folder.name if folder.is_dir() else "before": built}
        samples = runnable(built, samples)
        made, notes = report(built) if converted_modules(built) else None, []
        for other in _others(others):
            tell(f"making {other}")
            if other == "converted":
                made = _converted(built, whole_inputs(built, samples[0]), named, required=bool(others))
            elif other == "repaired":
                try:
                    named[other], fitted = _repaired(options, opened, samples)
                except PixelizeError as error:
                    if others:
                        raise
                    fitted = f"No repair to compare with: {error}"
                notes.append(fitted)
            else:
                named[_name_of(other, named)] = moved(
                    open_model(other, source=_source_of(other, options.source)).model, options.device
                )
        findings = measure(
            named, samples, title=title or options.model, told=told, period=period or None, report=made,
            natural=real, progress=tell,
        )  # fmt: skip
        if not opened.trained:
            findings.notes.append(
                "The model's weights are random, and so is what it shows; --weights fills it."
            )
        findings.notes.extend(notes)
        findings.notes.extend(_repair_notes(named.get("repaired")))
        tell("drawing")
        files = [str(path) for path in write_findings(findings, out, training=curves, pngs=pngs)]
    if options.as_json:
        print_json({**findings.to_dict(), "files": files})
    else:
        _print(findings, files)
        if not others and "repaired" in named and repair_report(named["repaired"]).repaired:
            print_text(f"next: pixelize repair {options.again()} --out FILE")
    worst = findings.variants[-1].worst
    if fail_above is not None:
        if worst is None:
            raise ArgumentError(
                "--fail-above: the checkerboard could not be measured; see the report's notes"
            )
        if worst > fail_above:
            raise typer.Exit(3)


def read_curves(path: str) -> Curves:
    """The training curves in a ``results.json`` that ``pixelize finetune`` wrote.

    Raises ArgumentError if it cannot be read or holds none.
    """
    try:
        arms = json.loads(Path(path).read_text())["arms"]
        curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for arm, told in arms.items():
            for seed, history in zip(told["seeds"], told["histories"], strict=True):
                for row in history:
                    for quantity in row.keys() - {"step", "seconds"}:
                        run = arm if len(told["seeds"]) == 1 else f"{arm}, seed {seed}"
                        point = (float(row["step"]), float(row[quantity]))
                        curves.setdefault(quantity, {}).setdefault(run, []).append(point)
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"{path}: not the results.json of a finetune run ({type(error).__name__})"
        ) from error
    if not curves:
        raise ArgumentError(f"{path}: holds no training curves")
    return dict(sorted(curves.items()))


def _others(others: list[str] | None) -> list[str]:
    if not others:
        return ["repaired"]
    if "none" in others and len(others) > 1:
        raise ArgumentError("'none' stands alone")
    return [other for other in others if other != "none"]


def _converted(built: nn.Module, example: Any, named: dict[str, nn.Module], required: bool) -> Report | None:
    try:
        named["converted"] = convert(built, example_inputs=one_sample(example))
    except NothingToConvertError:
        if required:
            raise
        return None
    return report(named["converted"])


def _repaired(options: ModelOptions, opened: OpenedModel, samples: list[Any]) -> tuple[nn.Module, str]:
    """The repaired model, and on what it was fitted.

    Inputs that are drawn are drawn anew and more of them, so that it is measured on others.
    """
    if options.data:
        told = "The repair was fitted on the pictures that it is measured on here; fresh ones show more."
    else:
        samples, _ = replace(options, seed=options.seed + 1).read(opened, REPAIR_SAMPLES)
        told = "The repair was fitted on other inputs than these."
    return repair(opened.model, samples, progress=sys.stderr.isatty()), told


def _repair_notes(repaired: nn.Module | None) -> list[str]:
    """What the repair did to each up-sampler."""
    if repaired is None:
        return []
    done = repair_report(repaired)
    more = [*done.reasons(), *done.notes] if done.repaired else []
    return [f"repair: {told}" for told in [done.verdict(), *more]]


def _source_of(other: str, source: str) -> str:
    """``--source`` is for folders that pixelize.save wrote."""
    return source if (Path(other) / PLAN).is_file() else ""


def _name_of(other: str, named: dict[str, nn.Module]) -> str:
    name = Path(other).name if Path(other).is_dir() else other
    return name if name not in named else f"{name} ({len(named) + 1})"


def _print(findings: Findings, files: list[str]) -> None:
    for sentence in findings.sentences():
        print_text(sentence)
    measured = [v for v in findings.variants if v.levels is not None]
    if measured:
        print_text(_levels(findings))
    typer.echo(str(findings.report))
    for note in findings.notes:
        print_text(f"note: {note}")
    print_text(f"inputs: {findings.inputs}")
    print_text(f"wrote {', '.join(files)}")


def _levels(findings: Findings) -> Table:
    rows = [(v.name, v.levels) for v in findings.variants if v.levels is not None]
    if findings.natural is not None:
        rows.append(("natural pictures", findings.natural))
    shown = sorted(rows[0][1]["global"], key=rows[0][1]["global"].get, reverse=True)[:4]
    forms = ("global", "windowed")
    return Table(
        ("checkerboard, dB", *(frequency_name(f) for f in sorted(shown))),
        [
            (f"{name}, {form}", *(f"{levels[form][f]:.1f}" for f in sorted(shown)))
            for name, levels in rows
            for form in forms
        ],
    )
