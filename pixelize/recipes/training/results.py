"""What is left at the end: a table of arms with mean and spread over seeds, a table of each arm's difference
from the first one, curves, a page, and the numbers as JSON.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from pixelize.files import write_text
from pixelize.pages.figures import Curves, curves_figure, save_png
from pixelize.pages.template import from_template, png_source
from pixelize.recipes.training.run_state import Metrics

INTERVALS = "Differences of runs with the same seed: mean and its 95 % confidence interval (Student's)."


@dataclass
class ArmResult:
    """One arm's runs, a row for each seed. ``facts``: what does not depend on the seed (parameters)."""

    arm: str
    seeds: list[int] = field(default_factory=list)
    results: list[Metrics] = field(default_factory=list)
    histories: list[list[Metrics]] = field(default_factory=list)
    facts: Metrics = field(default_factory=dict)

    def spread(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over seeds (nan for one seed, and where a value is infinite)."""
        values = list(self.by_seed(metric).values())
        told = len(values) > 1 and all(map(math.isfinite, values))
        return statistics.fmean(values), statistics.stdev(values) if told else float("nan")

    def by_seed(self, metric: str) -> dict[int, float]:
        """The metric of each seed."""
        return {seed: result[metric] for seed, result in zip(self.seeds, self.results, strict=True)}


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, the half width of its 95 % confidence interval (nan for one pair) and the
    number of ``pairs``.
    """

    mean: float
    half: float
    pairs: int

    def __str__(self) -> str:
        if self.pairs < 2:
            return f"{self.mean:+.2g}"
        return f"{self.mean:+.2g} ({self.mean - self.half:+.2g} to {self.mean + self.half:+.2g})"


def difference(values: dict[int, float], others: dict[int, float]) -> Difference:
    """``values`` minus ``others``, paired by seed; pairs with an infinite value are left out. The interval is
    Student's: the spread of the differences over the root of their number, times the quantile for one degree
    of freedom less.

    >>> print(difference({0: 3.0, 1: 5.0, 2: 4.0}, {0: 2.0, 1: 2.0, 2: 2.0, 7: 9.0}))
    +2 (-0.48 to +4.5)
    """
    gains = [value - others[seed] for seed, value in values.items() if seed in others]
    gains = [gain for gain in gains if math.isfinite(gain)]
    n = len(gains)
    if n < 2:
        return Difference(gains[0] if gains else math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(gains) / math.sqrt(n)
    return Difference(statistics.fmean(gains), half, n)


def differences(arms: list[ArmResult], metrics: list[str]) -> str:
    """A Markdown table: each arm's ``metrics`` minus those of the first arm with the same seeds."""
    first, *others = arms
    header = [f"minus `{first.arm}`", "pairs", *metrics]
    rows = []
    for arm in others:
        by_metric = [difference(arm.by_seed(m), first.by_seed(m)) for m in metrics]
        rows.append([arm.arm, str(by_metric[0].pairs), *map(str, by_metric)])
    return markdown([header, *rows])


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table of a header and rows."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_results(
    folder: Path,
    title: str,
    arms: list[ArmResult],
    settings: dict[str, Any],
    pictures: dict[str, Path] | None = None,
) -> dict[str, Any]:
    """Prints the table and writes ``results.json``, ``table.md``, ``curves.png`` and ``report.html``. Returns
    the JSON's data.
    """
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
    told = markdown([header, *rows])
    if len(arms) > 1:
        told += f"\n{INTERVALS}\n\n"
        told += differences(arms, [c for c in columns if c != "train minutes"])
    data = {
        "title": title,
        "settings": settings,
        "arms": {
            a.arm: {"seeds": a.seeds, "facts": a.facts, "results": a.results, "histories": a.histories}
            for a in arms
        },
    }
    write_text(folder / "results.json", json.dumps(data, indent=1) + "\n")
    write_text(folder / "table.md", told)
    save_png(curves_figure(curves(arms)), folder / "curves.png")
    shown = {"curves": folder / "curves.png", **(pictures or {})}
    page = from_template(
        "results.html", title=title, heads=header, results=rows,
        pictures={name: png_source(path.read_bytes()) for name, path in shown.items()},
        settings=[(key, str(value)) for key, value in settings.items()],
    )  # fmt: skip
    write_text(folder / "report.html", page)
    return data


def curves(arms: list[ArmResult]) -> Curves:
    """Every metric over the steps: its mean over the seeds, a line for each arm."""
    names = [n for n in arms[0].histories[0][-1] if n not in ("step", "seconds")]
    points: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in names}
    for arm in arms:
        for rows in zip(*arm.histories, strict=False):
            for name in names:
                mean = statistics.fmean(row[name] for row in rows)
                points[name].setdefault(arm.arm, []).append((rows[0]["step"], mean))
    return points


def _cell(arm: ArmResult, metric: str) -> str:
    mean, deviation = arm.spread(metric)
    return f"{mean:.4g}" + (f" ± {deviation:.2g}" if len(arm.seeds) > 1 else "")
