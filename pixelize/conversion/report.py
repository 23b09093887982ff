"""What a survey found or a conversion did, as plain data: printed as a table, written as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import nn

from pixelize.errors import PixelizeError
from pixelize.inheritance.record import kept_repair, kept_report
from pixelize.running.models import uncompiled
from pixelize.tables import Table, html_lines, wrapped

ROUNDING, SMALL = 1e-4, 0.05
"""Relative errors of a model's output up to which it is called the same, and close."""
Status = Literal["found", "converted", "skipped"]


@dataclass
class SiteReport:
    """One up-sampler: what it is, what became of it, and at what cost.

    ``error`` is the relative error of the layer itself: 0 where inheritance is exact, the expected or
    measured error of a fit otherwise, None where nothing was inherited. Multiply-adds are known only when
    example inputs were run.
    """

    name: str
    kind: str
    type: str
    status: Status
    names: tuple[str, ...] = ()
    layer: str | None = None
    reason: str | None = None
    note: str | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    kernel_size: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    multiply_adds_before: int | None = None
    multiply_adds_after: int | None = None
    error: float | None = None

    @property
    def geometry(self) -> str:
        """``"512>256 k4 s2"``: channels, kernel and stride; empty where they are not known."""
        if not self.kernel_size or not self.stride:
            return ""
        return f"{self.in_channels}>{self.out_channels} k{_times(self.kernel_size)} s{_times(self.stride)}"


@dataclass(repr=False)
class Report:
    """Every up-sampling site of a model with its status, and the model's totals.

    ``error``: the relative error of the model's outputs, max |after - before| / max |before|, on the example
    inputs; None if none were given. ``capture``: how the model was seen. ``notes``: what could not be seen,
    or is worth knowing.
    """

    sites: list[SiteReport] = field(default_factory=list)
    capture: str = "modules"
    notes: list[str] = field(default_factory=list)
    error: float | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None

    @property
    def found(self) -> list[SiteReport]:
        """Sites that can be converted and have not been."""
        return [s for s in self.sites if s.status == "found"]

    @property
    def converted(self) -> list[SiteReport]:
        """Sites that were converted."""
        return [s for s in self.sites if s.status == "converted"]

    @property
    def skipped(self) -> list[SiteReport]:
        """Sites that were left alone, each with its reason."""
        return [s for s in self.sites if s.status == "skipped"]

    @property
    def multiply_adds_before(self) -> int | None:
        """Multiply-adds of the converted sites as they were, on the example inputs."""
        return _total(s.multiply_adds_before for s in self.converted or self.found)

    @property
    def multiply_adds_after(self) -> int | None:
        """Multiply-adds of the converted sites as they are."""
        return _total(s.multiply_adds_after for s in self.converted)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data that ``json.dumps`` takes."""
        return asdict(self)

    def table(self) -> Table:
        """The sites that were converted, or else those that can be."""
        rows = self.converted or self.found
        columns: dict[str, list[str]] = {
            "site": [s.name or "(the model)" for s in rows],
            "from": [f"{s.kind} {s.geometry}".strip() for s in rows],
        }
        if self.converted:
            columns["into"] = [s.layer or "" for s in rows]
            columns["error"] = ["" if s.error is None else f"{s.error:.2g}" for s in rows]
        columns["parameters"] = [change(s.parameters_before, s.parameters_after) for s in rows]
        columns["multiply adds"] = [change(s.multiply_adds_before, s.multiply_adds_after) for s in rows]
        columns = {head: cells for head, cells in columns.items() if any(cells)}
        words = sum(head in ("site", "from", "into") for head in columns)
        return Table(list(columns), list(zip(*columns.values(), strict=True)), words)

    def remarks(self) -> list[str]:
        """What a table has no room for, a sentence each: what was left alone and why, what is special."""
        lines = [f"{s.name or '(the model)'}: {s.note}" for s in self.converted if s.note]
        if self.converted:
            lines += [f"not converted: {s.name or '(the model)'} ({s.kind} {s.geometry})" for s in self.found]
        return lines + [
            f"skipped: {s.name or '(the model)'} ({s.kind}, {s.type}): {s.reason}" for s in self.skipped
        ]

    def summary(self) -> list[str]:
        """The totals, a sentence each."""
        lines = [
            f"{len(self.converted)} converted, {len(self.found)} convertible, {len(self.skipped)} skipped "
            f"(seen through: {self.capture})"
        ]
        if self.parameters_before is not None:
            lines.append(f"parameters of the model: {change(self.parameters_before, self.parameters_after)}")
        if self.multiply_adds_before is not None:
            lines.append(
                "multiply-adds of these sites: " + change(self.multiply_adds_before, self.multiply_adds_after)
            )
        if self.error is not None:
            lines.append(f"relative error of the model's output: {self.error:.2g}{_verdict(self.error)}")
        return lines + [f"note: {note}" for note in self.notes]

    def text(self, width: int | None = None) -> str:
        """The table, the remarks and the totals in lines of ``width``, the terminal's by default."""
        table = [self.table().text(width), ""] if self.converted or self.found else []
        return "\n".join([*table, wrapped(self.remarks() + self.summary(), width)])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Report: {self.summary()[0]}>"

    def _repr_html_(self) -> str:
        table = self.table().html() if self.converted or self.found else ""
        return table + html_lines(self.remarks() + self.summary())

    def __iter__(self) -> Iterator[SiteReport]:
        return iter(self.sites)


def report(model: nn.Module) -> Report:
    """What the last conversion (or repair, calibration, load) of ``model`` did.

    Raises PixelizeError if nothing of this package ever touched the model.
    """
    kept: Report | None = kept_report(uncompiled(model))
    if kept is None and kept_repair(uncompiled(model)) is not None:
        raise PixelizeError(
            f"this {type(model).__name__} was repaired and not converted: "
            "pixelize.repair_report(model) tells what was done"
        )
    if kept is None:
        raise PixelizeError(
            f"this {type(model).__name__} was not converted: call pixelize.convert(model) first, or "
            "pixelize.inspect(model) to see what can be"
        )
    return kept


def _verdict(error: float) -> str:
    if error < ROUNDING:
        return " (the same, to rounding)"
    if error < SMALL:
        return " (close to the model before)"
    return (
        " (NOT the model before: fit it with pixelize.calibrate(model, data) or train it, or convert with "
        "layer='ipixeldcl', which is exact)"
    )


def _total(values: Iterator[int | None] | Any) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _times(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else "x".join(map(str, numbers))


def _count(n: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def change(before: int | None, after: int | None, between: str = " > ") -> str:
    """Two counts in short, ``"524k > 1.26M"``; one where they agree or the second is not known."""
    if before is None:
        return ""
    return _count(before) if after is None or after == before else f"{_count(before)}{between}{_count(after)}"
