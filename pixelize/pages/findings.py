"""What a report tells: a model, or variants of it, run on the same inputs and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pixelize.conversion.report import Report, SiteReport
from pixelize.diagnosis.report import Diagnosis
from pixelize.measure.checkerboard import frequency_name
from pixelize.measure.natural import NOTICEABLE


@dataclass(frozen=True)
class Variant:
    """One model's pictures. ``levels``: :func:`pixelize.checkerboard`'s, None where pictures are too small.

    Against the first variant: ``error``, the largest change over the largest absolute value of its outputs,
    and ``psnr`` in dB with its pictures' range as peak; None for the first.
    """

    name: str
    levels: dict[str, Any] | None
    parameters: int
    error: float | None = None
    psnr: float | None = None

    @property
    def worst(self) -> float | None:
        """The highest global figure, in dB."""
        return None if self.levels is None else self.levels["worst"]


@dataclass(frozen=True)
class Layer:
    """An up-sampler, as the conversion's report has it, with its phase unevenness in dB by variant.

    The unevenness is that of :func:`pixelize.measure.phase_response` for the layer's mean input in these
    runs.
    """

    site: SiteReport
    unevenness: dict[str, float] = field(default_factory=dict)
    source: bool = False


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a report shows.

    ``pictures``: ``(N, C, H, W)`` by variant, of one size; empty if the outputs hold none.
    """

    title: str
    model: str
    inputs: str
    period: int | tuple[int, int]
    variants: list[Variant]
    layers: list[Layer]
    report: Report
    pictures: dict[str, Tensor]
    natural: dict[str, Any] | None = None
    diagnosis: Diagnosis | None = None
    notes: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Does it have a checkerboard, where does it come from, did it go: a sentence each."""
        told = []
        first = self.variants[0]
        if first.levels is not None:
            worst = max(first.levels["global"], key=first.levels["global"].get)
            level = first.levels["global"][worst]
            place = f"{level:.1f} dB at {frequency_name(worst)}"
            if level >= 2 * NOTICEABLE:
                told.append(f"A clear checkerboard: {place}, where natural pictures measure about 0.")
            elif level >= NOTICEABLE:
                told.append(f"Some checkerboard: {place}, where natural pictures measure about 0.")
            else:
                told.append(f"No checkerboard that keeps its place: at most {place}.")
        if self.diagnosis is not None:
            told += self.diagnosis.explained()
        for after in self.variants[1:]:
            if after.error is not None and after.error < 1e-5:
                told.append(
                    f"{after.name}: the same pictures to rounding (relative error {after.error:.1g})."
                )
            elif after.worst is not None and first.worst is not None:
                told.append(
                    f"{after.name}: {first.worst:.1f} dB became {after.worst:.1f} dB"
                    + (f", {after.psnr:.1f} dB PSNR from the first." if after.psnr is not None else ".")
                )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain data that ``json.dumps`` takes."""
        return {
            "title": self.title,
            "model": self.model,
            "inputs": self.inputs,
            "period": self.period,
            "sentences": self.sentences(),
            "variants": [
                {
                    "name": v.name,
                    "parameters": v.parameters,
                    "checkerboard": plain_levels(v.levels),
                    "error": v.error,
                    "psnr": v.psnr if v.psnr is None or math.isfinite(v.psnr) else None,
                }
                for v in self.variants
            ],
            "natural": plain_levels(self.natural),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
            "unevenness": {layer.site.name: layer.unevenness for layer in self.layers},
            "report": self.report.to_dict(),
            "notes": self.notes,
        }


def plain_levels(levels: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """:func:`pixelize.checkerboard`'s result with names for frequencies."""
    if levels is None:
        return None
    forms = ("global", "windowed")
    named = {form: {frequency_name(f): dB for f, dB in levels[form].items()} for form in forms}
    return {**named, "worst": levels["worst"]}
