"""One self-contained page, and PNGs: does a model leave checkerboards, where from, and did they go?"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pixelize.conversion.report import Report, change
from pixelize.errors import ArgumentError
from pixelize.extras import require
from pixelize.files import write_bytes, write_text
from pixelize.inheritance.record import kept_report
from pixelize.measure.checkerboard import as_periods, frequencies, frequency_name
from pixelize.measure.natural import NOTICEABLE, natural_excess
from pixelize.pages.figures import Curves, comparison_figure, curves_figure, png_bytes, spectrum_figures
from pixelize.pages.findings import Findings
from pixelize.pages.measuring import measure
from pixelize.pages.shown_pictures import ShownPictures, difference_caption, enlarged, shown_pictures
from pixelize.pages.template import from_template, png_source
from pixelize.running.inputs import default_inputs, shape_of
from pixelize.version import __version__

SHOWN = 4


def write_report(
    models: nn.Module | tuple[nn.Module, nn.Module] | Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    *,
    inputs: Iterable[Any] | Tensor | None = None,
    title: str | None = None,
    period: int | tuple[int, int] | None = None,
    natural: Iterable[Tensor] | None = None,
    training: Curves | None = None,
    pngs: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Findings:
    """Runs a model, or variants of it, on the same inputs and writes what comes out as a page.

    The page is one HTML file that needs nothing else: no network, light and dark, for wide and narrow
    screens. Beside ``report.html``, ``report.png`` shows the pictures and spectra and
    ``report-training.png`` the curves.

    Args:
        models: one model, a pair (before, after), or variants by name, the one to compare with first. What
            the last conversion of one of them did (:func:`pixelize.report`) makes the table of layers.
        path: the HTML file; written, like the PNGs, whole or not at all.
        inputs: what to run: an iterable of a tensor, tuple or dict each, or one tensor; by default 64 samples
            of random numbers in the shape that suits the model's library.
        title: heading; the model's class by default.
        period: of the checkerboard to measure; the last up-sampler's stride by default.
        natural: real pictures of the same kind, to compare the levels with.
        training: curves to draw, points (step, value) by quantity and run.
        pngs: write the PNGs too.
        progress: told each step in words.

    Returns:
        What was measured.

    Raises:
        ArgumentError: no inputs are known for the model, it does not take them, or its output holds NaN or
            inf.
        MissingExtraError: jinja2, matplotlib or pillow is not installed.
    """
    require("pages", "write_report")
    named = _named(models)
    first = next(iter(named.values()))
    if inputs is None:
        samples, told = default_inputs(first)
    else:
        samples = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not samples:
            raise ArgumentError("a report needs inputs; the iterable is empty")
        told = f"{len(samples)} batches of inputs ({shape_of(samples[0])})"
    findings = measure(
        named, samples, title=title or type(first).__name__, told=told, period=period,
        report=_report_of(named), natural=natural, progress=progress,
    )  # fmt: skip
    write_findings(findings, path, training=training, pngs=pngs)
    return findings


def write_findings(
    findings: Findings, path: str | os.PathLike[str], *, training: Curves | None = None, pngs: bool = True
) -> list[Path]:
    """Writes the page (and PNGs) of what was measured; returns the files."""
    target = Path(path)
    page = render(findings, training)
    written = []
    if pngs and findings.pictures:
        reference = next(iter(findings.pictures))
        picture = target.with_suffix(".png")
        written.append(
            comparison_figure(findings.pictures, reference, picture, findings.period, title=findings.title)
        )
    if pngs and training:
        curves = target.with_name(f"{target.stem}-training.png")
        written.append(write_bytes(curves, png_bytes(curves_figure(training))))
    return [write_text(target, page), *written]


def render(findings: Findings, training: Curves | None = None) -> str:
    """The page as text."""
    shown = (
        shown_pictures(findings.pictures, next(iter(findings.pictures)), period=findings.period, rows=SHOWN)
        if findings.pictures
        else None
    )
    worst = findings.variants[-1].worst
    return from_template(
        "report.html",
        title=findings.title,
        version=__version__,
        model=findings.model,
        inputs=findings.inputs,
        period="x".join(str(p) for p in dict.fromkeys(as_periods(findings.period))),
        sentences=findings.sentences(),
        verdict="" if worst is None else "bad" if worst >= NOTICEABLE else "good",
        levels=_levels(findings),
        rows=_tile_rows(shown) if shown else [],
        across=4 * len(findings.pictures) - 1 if findings.pictures else 1,
        channel=shown.channel if shown else None,
        spectra=_spectra(findings),
        count=len(next(iter(findings.pictures.values()))) if findings.pictures else 0,
        layers=_layers(findings),
        totals=findings.report.summary(),
        skipped=findings.report.skipped,
        training=_training(training) if training else [],
        notes=findings.notes,
    )


def _named(
    models: nn.Module | tuple[nn.Module, nn.Module] | Mapping[str, nn.Module],
) -> dict[str, nn.Module]:
    if isinstance(models, nn.Module):
        named = {"the model": models}
    elif isinstance(models, tuple | list):
        if len(models) != 2:
            raise ArgumentError(f"{len(models)} models; give one, a pair (before, after), or a dict by name")
        named = dict(zip(("before", "after"), models, strict=True))
    elif isinstance(models, Mapping):
        named = dict(models)
    else:
        raise ArgumentError(f"models is a {type(models).__name__}; give one, a pair, or a dict by name")
    for name, model in named.items():
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"{name}: a {type(model).__name__}, not a torch.nn.Module")
    if not named:
        raise ArgumentError("a report needs a model")
    return named


def _report_of(named: Mapping[str, nn.Module]) -> Report | None:
    """The last variant's conversion report, if any has one."""
    for model in reversed(list(named.values())):
        report = kept_report(getattr(model, "_orig_mod", model))
        if report is not None:
            return report
    return None


def _levels(findings: Findings) -> dict[str, Any] | None:
    measured = [(v.name, v.levels) for v in findings.variants if v.levels is not None]
    if not measured:
        return None
    if findings.natural is not None:
        measured.append(("natural pictures", findings.natural))
    heads = [f"{name}, {form}" for name, _ in measured for form in ("global", "windowed")]
    rows = []
    for f in frequencies(findings.period):
        cells = [
            {
                "text": f"{levels[form][f]:.1f}",
                "strong": levels[form][f] - natural_excess(form, f, findings.period) >= NOTICEABLE,
            }
            for _, levels in measured
            for form in ("global", "windowed")
        ]
        rows.append({"name": frequency_name(f), "cells": cells})
    return {"heads": heads, "rows": rows}


def _tile_rows(shown: ShownPictures) -> list[list[dict[str, Any]]]:
    rows = []
    for i, (top, left, size) in enumerate(shown.boxes):
        row: list[dict[str, Any]] = []
        for name, pictures in shown.pictures.items():
            height, width = pictures.shape[1:3]
            box = (100 * left / width, 100 * top / height, 100 * size / width, 100 * size / height)
            row.append({"caption": name, "source": _picture(pictures[i]), "box": box})
            row.append({"caption": f"{name}, zoom", "source": _picture(shown.zooms[name][i]), "box": None})
            alone = f"{name}, the pattern alone ×{shown.pattern_gain:g}"
            row.append({"caption": alone, "source": _picture(shown.patterns[name][i]), "box": None})
            if name in shown.differences:
                source = _picture(shown.differences[name][i])
                row.append({"caption": difference_caption(shown, name), "source": source, "box": None})
        rows.append(row)
    return rows


def _spectra(findings: Findings) -> list[dict[str, str]]:
    if not findings.pictures:
        return []
    light, dark = (spectrum_figures(findings.pictures, findings.period, dark=d) for d in (False, True))
    return [
        {
            "caption": f"{name}, in full" if name else "over the distance from frequency 0",
            "light": png_source(png_bytes(light[name])),
            "dark": png_source(png_bytes(dark[name])),
        }
        for name in light
    ]


def _training(curves: Curves) -> list[dict[str, str]]:
    return [
        {
            "caption": quantity,
            "light": png_source(png_bytes(curves_figure({quantity: lines}))),
            "dark": png_source(png_bytes(curves_figure({quantity: lines}, dark=True))),
        }
        for quantity, lines in curves.items()
    ]


def _layers(findings: Findings) -> dict[str, Any]:
    several = len(findings.variants) > 1
    heads = ["site", "kind", "channels", "kernel", "stride", "into", "error", "parameters", "mult-adds"]
    heads += [f"unevenness, {v.name}" if several else "unevenness" for v in findings.variants]
    rows: list[dict[str, Any]] = []
    for layer in findings.layers:
        s = layer.site
        cells = [
            s.name or "(the model)",
            s.kind,
            "" if s.in_channels is None else f"{s.in_channels} to {s.out_channels}",
            _times(s.kernel_size),
            _times(s.stride),
            s.layer or ("no" if s.status == "converted" else "not converted"),
            "" if s.error is None or s.status != "converted" else f"{s.error:.2g}",
            change(s.parameters_before, s.parameters_after, " → "),
            change(s.multiply_adds_before, s.multiply_adds_after, " → "),
        ]
        for variant in findings.variants:
            value = layer.unevenness.get(variant.name)
            cells.append("" if value is None or not math.isfinite(value) else f"{value:.0f} dB")
        rows.append({"cells": cells, "source": layer.source})
    told = [k for k, cells in enumerate(zip(*(row["cells"] for row in rows), strict=True)) if any(cells)]
    for row in rows:
        row["cells"] = [row["cells"][k] for k in told]
    return {"heads": [heads[k] for k in told], "rows": rows}


def _times(numbers: tuple[int, ...] | None) -> str:
    return "" if numbers is None else "x".join(map(str, numbers))


def _picture(picture: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(enlarged(picture, 256)).save(stream, "PNG", optimize=True)
    return png_source(stream.getvalue())
