"""What is left at the end: a table of arms with mean and spread over seeds, curves, a page, and the numbers as JSON."""

from __future__ import annotations

import base64
import html
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pixelize.recipes.run_state import Metrics

matplotlib.use("Agg")


@dataclass
class ArmResult:
    """One arm's runs, a row for each seed. ``facts``: what does not depend on the seed (parameters)."""

    arm: str
    seeds: list[int] = field(default_factory=list)
    results: list[Metrics] = field(default_factory=list)
    histories: list[list[Metrics]] = field(default_factory=list)
    facts: Metrics = field(default_factory=dict)

    def spread(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over seeds (nan for one seed)."""
        values = [r[metric] for r in self.results]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def write_results(
    folder: Path,
    title: str,
    arms: list[ArmResult],
    settings: dict[str, Any],
    pictures: dict[str, Path] | None = None,
) -> dict[str, Any]:
    """Prints the table and writes ``results.json``, ``table.md``, ``curves.png`` and ``report.html``. Returns the JSON's data."""
    columns = list(arms[0].results[0])
    facts = list(arms[0].facts)
    rows = [
        [a.arm, str(len(a.seeds)), *(f"{a.facts[f]:,.0f}" for f in facts), *(_cell(a, m) for m in columns)]
        for a in arms
    ]
    header = ["arm", "seeds", *facts, *columns]
    across = list(zip(*[header, *rows], strict=True)) if len(header) > len(rows) + 1 else [header, *rows]
    table = Table(*across[0], title=title)
    for row in across[1:]:
        table.add_row(*row)
    Console().print(table)
    markdown = "\n".join("| " + " | ".join(r) + " |" for r in [header, ["---"] * len(header), *rows]) + "\n"
    data = {
        "title": title,
        "settings": settings,
        "arms": {
            a.arm: {"seeds": a.seeds, "facts": a.facts, "results": a.results, "histories": a.histories}
            for a in arms
        },
    }
    (folder / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "table.md").write_text(markdown)
    draw_curves(folder / "curves.png", arms)
    (folder / "report.html").write_text(
        _page(title, header, rows, settings, {"curves": folder / "curves.png", **(pictures or {})})
    )
    return data


def draw_curves(path: Path, arms: list[ArmResult]) -> None:
    """One panel for each metric over the steps, one line for each run, one colour for each arm."""
    names = [n for n in arms[0].histories[0][-1] if n not in ("step", "seconds")]
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, arm in enumerate(arms):
            for i, history in enumerate(arm.histories):
                axes.plot(
                    [r["step"] for r in history], [r[name] for r in history], color=f"C{number % 10}", lw=1.2,
                    label=arm.arm if i == 0 else None,
                )  # fmt: skip
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _cell(arm: ArmResult, metric: str) -> str:
    mean, deviation = arm.spread(metric)
    return f"{mean:.4g}" + (f" ± {deviation:.2g}" if len(arm.seeds) > 1 else "")


def _page(
    title: str, header: list[str], rows: list[list[str]], settings: dict[str, Any], pictures: dict[str, Path]
) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    images = "".join(
        f"<h2>{html.escape(name)}</h2><img alt='{html.escape(name)}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'>"
        for name, path in pictures.items()
        if path.exists()
    )
    told = "".join(line([k, str(v)], "td") for k, v in settings.items())
    return (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>:root{{color-scheme:light dark}}body{{font:15px system-ui;margin:2em auto;"
        "max-width:70em;padding:0 1em}table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.3em .8em;"
        "border-bottom:1px solid #8884;text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%;"
        "background:#fff}</style>"
        f"<h1>{html.escape(title)}</h1><table>{line(header, 'th')}{''.join(line(r, 'td') for r in rows)}</table>{images}"
        f"<h2>settings</h2><table>{told}</table>\n"
    )
