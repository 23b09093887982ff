"""What a repair found and did, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pixelize.errors import ArgumentError
from pixelize.inheritance.record import kept_repair
from pixelize.measure.content import ContentChange
from pixelize.tables import Table, html_lines, wrapped


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
        """What came of it, in one sentence."""
        if not self.before:
            return "Nothing was measured" + (": repaired from the weights alone." if self.repaired else ".")
        before, after = self.worst(self.before), self.worst(self.after or self.before)
        if not self.repaired:
            return f"Nothing was changed: the worst level is {before:.1f} dB over natural."
        names = ", ".join(site.name or "(the model)" for site in self.repaired)
        return (
            f"Repaired {names}: the worst level fell from {before:.1f} to {after:.1f} dB over natural; "
            f"the {self.made} are {self.psnr:.1f} dB (PSNR) from those before."
        )

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
            for f in dict.fromkeys(f for form in forms for f in self.before[form])
        ]
        heads = [f"{form}, {when}" for form in forms for when in ("before", "after")]
        return Table(("dB over natural at", *heads), rows)

    def remarks(self) -> list[str]:
        """What a table has no room for, a sentence each."""
        lines = [
            f"{site.name or '(the model)'}: {site.status}" + (f" ({site.reason})" if site.reason else "")
            for site in self.sites
            if site.reason or site.status != "repaired"
        ]
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
        return lines + self.notes

    def text(self, width: int | None = None) -> str:
        """The verdict, the table and the remarks in lines of ``width``, the terminal's by default."""
        table = ["", self.table().text(width), ""] if self.before else []
        return "\n".join([wrapped([self.verdict()], width), *table, wrapped(self.remarks(), width)]).rstrip()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<RepairReport: {self.verdict()}>"

    def _repr_html_(self) -> str:
        table = self.table().html() if self.before else ""
        return html_lines([self.verdict()]) + table + html_lines(self.remarks())


def repair_report(model: nn.Module) -> RepairReport:
    """The report of the last :func:`repair` of ``model``.

    Raises:
        ArgumentError: the model did not come from :func:`repair`.
    """
    found: RepairReport | None = kept_repair(model)
    if found is None:
        raise ArgumentError(f"this {type(model).__name__} did not come from pixelize.repair")
    return found
