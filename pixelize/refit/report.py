"""What a repair found and did, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pixelize.errors import ArgumentError
from pixelize.inheritance.record import kept_repair
from pixelize.measure.content import ContentChange
from pixelize.measure.natural import NOTICEABLE
from pixelize.tables import Table, html_lines, wrapped

ROWS = 16
"""Frequencies in a table of text at most: the worst."""
NAMED = 3
"""Layers named with a reason that they share, before they are counted."""


@dataclass(frozen=True)
class RepairedSite:
    """A layer, or a function's parameter: ``status`` is "repaired", "left" (looked at, with the reason)
    or "skipped" (could not be)."""

    name: str
    status: str
    reason: str = ""
    share: float | None = None
    """What it can take out of the pattern, at a given change of the pictures, next to the one that can most
    (1)."""


@dataclass(frozen=True, repr=False)
class RepairReport:
    """What :func:`repair` found and did; excess in dB over the natural level, by form of the
    measure ("global", "windowed") and frequency.

    Frequencies are written "(0,1/2)", in cycles per pixel down and across, on held-back data. ``psnr``
    compares the pictures after with those before (their range as peak), infinite if nothing was changed.
    ``content`` tells what changed away from the artifact's frequencies.
    """

    sites: list[RepairedSite] = field(default_factory=list)
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    psnr: float = math.inf
    content: ContentChange | None = None
    seconds: float = 0.0
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    made: str = "pictures"
    """What the model makes: "pictures", "waveforms" or "volumes"."""

    @property
    def repaired(self) -> list[RepairedSite]:
        """The up-samplers that were changed."""
        return [site for site in self.sites if site.status == "repaired"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def worst(self, levels: dict[str, dict[str, float]]) -> float:
        """The highest of such levels, of either form, in dB over natural."""
        return max((v for by_frequency in levels.values() for v in by_frequency.values()), default=0.0)

    def verdict(self) -> str:
        """What came of it: how many frequencies stood out and still do, the worst, and what fell most."""
        if not self.repaired:
            return self._left()
        names = ", ".join(site.name or "the model itself" for site in self.repaired)
        if not self.before or not self.after:
            return f"Repaired {names}, from the weights alone: nothing was measured."
        before, after = _highest(self.before), _highest(self.after)
        worst, left = max(before, key=lambda f: before[f]), max(after, key=lambda f: after[f])
        fell = max(before, key=lambda f: before[f] - after[f])
        stood, stand = (sum(v >= NOTICEABLE for v in levels.values()) for levels in (before, after))
        told = f"{_count(stood)} stood out by {NOTICEABLE:g} dB or more, {stand or 'none'} now. "
        if fell != worst:
            told += f"{fell} fell most, from {before[fell]:+.1f} to {after[fell]:+.1f} dB; "
        told += f"{worst}, the worst, went from {before[worst]:+.1f} to {after[worst]:+.1f} dB"
        told += f", and now {left} is, with {after[left]:+.1f} dB" if left != worst else ""
        return f"Repaired {names}: {told}."

    def _left(self) -> str:
        """Why nothing was repaired."""
        why = "; ".join(dict.fromkeys([*self.reasons(), *self.notes])) or "no up-sampler was found"
        levels = f" by {self.worst(self.before):+.1f} dB" if self.before else ""
        if self.clean:
            most = f"no frequency stands out by more than{levels[3:]} ({why})" if levels else why
            return f"Nothing to repair: {most}."
        place = f" although a pattern stands out{levels}" if levels else ""
        return f"Could not be repaired{place}: {why}."

    @property
    def clean(self) -> bool:
        """Whether nothing was repaired because there was nothing to repair."""
        return not self.repaired and (self.worst(self.before) < NOTICEABLE if self.before else not self.sites)

    def table(self) -> Table:
        """The levels before and after, by frequency."""
        forms = list(self.before)
        rows = [
            (
                f,
                *(
                    f"{levels[form][f]:+.1f}" if f in levels.get(form, {}) else ""
                    for form in forms
                    for levels in (self.before, self.after or self.before)
                ),
            )
            for f in _highest(self.before)
        ]
        heads = [f"{form}, {when}" for form in forms for when in ("before", "after")]
        return Table(("dB over natural at", *heads), rows)

    def levels(self) -> list[Table | str]:
        """The table; of a long one the worst rows, and a sentence on the rest."""
        if not self.before:
            return []
        table, high = self.table(), _highest(self.before, self.after)
        if len(high) <= ROWS:
            return [table]
        kept = set(sorted(high, key=lambda f: high[f], reverse=True)[:ROWS])
        rest = max(v for f, v in high.items() if f not in kept)
        rows = [row for row in table.rows if row[0] in kept]
        told = f"{_count(len(high) - ROWS)} more: {rest:+.1f} dB at most (to_dict() or --json has them all)"
        return [Table(table.heads, rows), told]

    def reasons(self) -> list[str]:
        """Why layers were not repaired: each reason once, after the names that it holds for."""
        names: dict[str, list[str]] = {}
        for site in self.sites:
            if site.reason:
                names.setdefault(site.reason, []).append(site.name or "the model itself")
        more = {why: f" and {len(those) - NAMED} more" for why, those in names.items() if len(those) > NAMED}
        return [f"{', '.join(those[:NAMED])}{more.get(why, '')}: {why}" for why, those in names.items()]

    def remarks(self) -> list[str]:
        """What a table has no room for, a sentence each."""
        lines = [f"the {self.made} are {self.psnr:.1f} dB (PSNR) from those before"] if self.repaired else []
        if self.content is not None:
            lines.append(
                f"away from these frequencies the {self.made} are {self.content.psnr:.1f} dB (PSNR) from "
                f"those before; their mean power there changed by {self.content.spectrum:+.2f} dB at most"
            )
        if self.before:
            lines.append(f"measured on {self.samples} samples that were held back; {self.seconds:.0f} s")
            lines.append(
                f"not measured: {self.made} unlike those, and what the model's own task gains or loses"
            )
        return lines + (self.reasons() + self.notes if self.repaired else [])

    def text(self, width: int | None = None) -> str:
        """The verdict, the table and the remarks in lines of ``width``, the terminal's by default."""
        shown = [p.text(width) if isinstance(p, Table) else wrapped([p], width) for p in self.levels()]
        table = ["", *shown, ""] if shown else []
        return "\n".join([wrapped([self.verdict()], width), *table, wrapped(self.remarks(), width)]).rstrip()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<RepairReport: {self.verdict()}>"

    def _repr_html_(self) -> str:
        shown = [p.html() if isinstance(p, Table) else html_lines([p]) for p in self.levels()]
        return html_lines([self.verdict()]) + "".join(shown) + html_lines(self.remarks())


def _highest(*several: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each frequency the highest level, of the forms of the measure and of ``several`` such levels."""
    found: dict[str, float] = {}
    for levels in several:
        for by_frequency in levels.values():
            for f, level in by_frequency.items():
                found[f] = max(level, found.get(f, -math.inf))
    return found


def _count(frequencies: int) -> str:
    return f"{frequencies} frequenc{'y' if frequencies == 1 else 'ies'}"


def repair_report(model: nn.Module) -> RepairReport:
    """The report of the last :func:`repair` of ``model``.

    Raises:
        ArgumentError: the model did not come from :func:`repair`.
    """
    found: RepairReport | None = kept_repair(model)
    if found is None:
        raise ArgumentError(f"this {type(model).__name__} did not come from pixelize.repair")
    return found
