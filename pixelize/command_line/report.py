"""``pixelize report``: run a model and what became of it, measure, and write the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from pixelize.command_line.options import (
    AsJson,
    Count,
    Device,
    InputNames,
    ModelName,
    Scale,
    Seed,
    Size,
    Source,
    Weights,
    print_json,
    print_rich,
    progress,
    read_data,
    read_model,
)
from pixelize.conversion.convert import convert
from pixelize.conversion.report import Report
from pixelize.errors import ArgumentError, NothingToConvertError
from pixelize.inheritance.record import converted_modules
from pixelize.measure.checkerboard import frequency_name
from pixelize.pages.figures import Curves
from pixelize.pages.findings import Findings, measure
from pixelize.pages.page import write_findings
from pixelize.running.inputs import one_sample
from pixelize.sources.inputs import read_inputs
from pixelize.sources.models import build_model, has_weights

REPAIR_SAMPLES = 1024


def report_command(
    model: ModelName,
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AFTER]...",
            help="What to compare it with: 'converted', 'repaired', or the name of another model or folder. "
            "By default 'converted'; 'none' for the model alone.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The HTML file; PNGs are written beside it.")
    ] = Path("report.html"),
    input: InputNames = None,
    size: Size = "",
    scale: Scale = "unit",
    count: Count = 64,
    seed: Seed = 0,
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
    weights: Weights = "",
    source: Source = "",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Does a model leave checkerboards, where do they come from, and did they go? Numbers, pictures, a page.

    Examples:

    - `pixelize report demo repaired --out demo.html`

    - `pixelize report smp:Linknet --weights before.pt finetuned/ --input photos/ --size 256 --scale imagenet`

    - `pixelize report my_models.py:generator none --natural faces/ --fail-above 3`
    """
    if out.is_dir():
        out = out / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"{out}: --out names an .html file")
    curves = read_curves(training) if training else None
    with progress("building the model") as tell:
        built = read_model(model, source, weights, device)
        samples, told = read_data(built, input, size, scale, count, seed, device)
        real = [x for x in read_inputs([natural]) if isinstance(x, Tensor)] if natural else None
        named: dict[str, nn.Module] = {Path(model).name if Path(model).is_dir() else "before": built}
        made = None
        for other in _others(others, built):
            tell(f"making {other}")
            if other == "converted":
                made = _converted(built, one_sample(samples[0]), named, required=bool(others))
            elif other == "repaired":
                named[other] = _repaired(built, input, samples, seed, device)
            else:
                named[_name_of(other, named)] = build_model(other, source=source or None).to(device)
        found = measure(
            named, samples, title=title or model, told=told, period=period or None, report=made,
            natural=real, progress=tell,
        )  # fmt: skip
        if not weights and not has_weights(model):
            found.notes.append("The model's weights are random: --weights fills it with a checkpoint.")
        found.notes.extend(_repair_notes(named.get("repaired")))
        tell("drawing")
        files = [str(path) for path in write_findings(found, out, training=curves, pngs=pngs)]
    if as_json:
        print_json({**found.to_dict(), "files": files})
    else:
        _print(found, files)
        if not others and made is not None:
            print_rich(f"next: pixelize report '{model}' repaired, or pixelize finetune repair --help")
    worst = found.variants[-1].worst
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


def _others(others: list[str] | None, built: nn.Module) -> list[str]:
    if not others:
        return [] if converted_modules(built) else ["converted"]
    if "none" in others and len(others) > 1:
        raise ArgumentError("'none' stands alone")
    return [other for other in others if other != "none"]


def _converted(built: nn.Module, example: Any, named: dict[str, nn.Module], required: bool) -> Report | None:
    from pixelize.conversion.report import report

    try:
        named["converted"] = convert(built, example_inputs=example)
    except NothingToConvertError:
        if required:
            raise
        return None
    return report(named["converted"])


def _repaired(
    built: nn.Module, names: list[str] | None, samples: list[Any], seed: int, device: str
) -> nn.Module:
    """The repaired model; random inputs are drawn anew and more of them, so that it is measured on others."""
    from pixelize.refit.repair import repair

    if not names:
        samples, _ = read_data(built, None, "", "unit", REPAIR_SAMPLES, seed + 1, device)
    return repair(built, samples)


def _repair_notes(repaired: nn.Module | None) -> list[str]:
    """What the repair did to each up-sampler."""
    if repaired is None:
        return []
    from pixelize.refit.report import repair_report

    done = repair_report(repaired)
    told = [f"repair, {s.name}: {s.status}{f' ({s.reason})' if s.reason else ''}" for s in done.sites]
    return told + [f"repair: {note}" for note in done.notes]


def _name_of(other: str, named: dict[str, nn.Module]) -> str:
    name = Path(other).name if Path(other).is_dir() else other
    return name if name not in named else f"{name} ({len(named) + 1})"


def _print(found: Findings, files: list[str]) -> None:
    for sentence in found.sentences():
        print_rich(sentence)
    measured = [v for v in found.variants if v.levels is not None]
    if measured:
        print_rich(_levels(found))
    print_rich(found.report)
    for note in found.notes:
        print_rich(f"note: {note}")
    print_rich(f"inputs: {found.inputs}")
    print_rich(f"wrote {', '.join(files)}")


def _levels(found: Findings) -> Table:
    rows = [(v.name, v.levels) for v in found.variants if v.levels is not None]
    if found.natural is not None:
        rows.append(("natural pictures", found.natural))
    shown = sorted(rows[0][1]["global"], key=rows[0][1]["global"].get, reverse=True)[:4]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("checkerboard, dB", overflow="fold", min_width=12)
    for f in sorted(shown):
        table.add_column(frequency_name(f), justify="right", no_wrap=True)
    for name, levels in rows:
        table.add_row(Text(f"{name}, global"), *(f"{levels['global'][f]:.1f}" for f in sorted(shown)))
        table.add_row(Text(f"{name}, windowed"), *(f"{levels['windowed'][f]:.1f}" for f in sorted(shown)))
    return table
