"""What a repair found and did, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pixelize.errors import ArgumentError
from pixelize.inheritance.record import kept_repair
from pixelize.measure.content import ContentChange


@dataclass(frozen=True)
class RepairedSite:
    """An up-sampler: ``status`` is "repaired", "left" (looked at, with the reason) or "skipped" (could not
    be)."""

    name: str
    status: str
    reason: str = ""
    share: float | None = None
    """Decibels by which the worst excess falls when this up-sampler's own pattern is taken out of its
    output."""


@dataclass(frozen=True)
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

    @property
    def repaired(self) -> list[RepairedSite]:
        """The up-samplers that were changed."""
        return [site for site in self.sites if site.status == "repaired"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{site.name}: {site.status}" + (f" ({site.reason})" if site.reason else "")
            for site in self.sites
        ]
        for kind, levels in self.before.items():
            after = self.after.get(kind, levels)
            lines += [f"{kind} {f}: {level:+.1f} dB -> {after[f]:+.1f} dB" for f, level in levels.items()]
        lines.append(f"PSNR to the pictures before: {self.psnr:.1f} dB; {self.seconds:.0f} s")
        if self.content is not None:
            lines.append(
                f"away from these frequencies: PSNR {self.content.psnr:.1f} dB, power spectrum "
                f"{self.content.spectrum:+.2f} dB at most"
            )
        return "\n".join(lines + self.notes)


def repair_report(model: nn.Module) -> RepairReport:
    """The report of the last :func:`repair` of ``model``.

    Raises:
        ArgumentError: the model did not come from :func:`repair`.
    """
    found: RepairReport | None = kept_repair(model)
    if found is None:
        raise ArgumentError(f"this {type(model).__name__} did not come from pixelize.repair")
    return found
