"""What a survey found or a conversion did, as plain data: printed as a table, written as JSON."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from torch import nn

from pixelize.errors import PixelizeError

Status = Literal["found", "converted", "skipped"]


@dataclass
class SiteReport:
    """One up-sampler: what it is, what became of it, and at what cost.

    ``error`` is the relative error of the layer itself: 0 where inheritance is exact, the expected or measured error of a fit otherwise, None
    where nothing was inherited. Multiply-adds are known only when example inputs were run.
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
    kernel_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    multiply_adds_before: int | None = None
    multiply_adds_after: int | None = None
    error: float | None = None


@dataclass
class Report:
    """Every up-sampling site of a model with its status, and the model's totals.

    ``error``: the relative error of the model's outputs, max |after - before| / max |before|, on the example inputs; None if none were
    given. ``capture``: how the model was seen. ``notes``: what could not be seen, or is worth knowing.
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
        """The sites as a rich table."""
        table = Table(title=None, header_style="bold", expand=False)
        table.add_column("site", overflow="fold")
        table.add_column("kind")
        table.add_column("from")
        table.add_column("to", overflow="fold")
        for heading in ("error", "parameters", "multiply-adds"):
            table.add_column(heading, justify="right")
        for s in self.sites:
            shape = ""
            if s.kernel_size and s.stride:
                shape = f" {s.in_channels}>{s.out_channels} k{_times(s.kernel_size)} s{_times(s.stride)}"
            to = {"found": "(can be converted)", "skipped": f"skipped: {s.reason}"}.get(
                s.status, s.layer or ""
            )
            if s.status == "converted" and s.note:
                to += f" ({s.note})"
            table.add_row(
                s.name or "(the model)",
                s.kind,
                s.type + shape,
                to,
                "" if s.error is None or s.status != "converted" else f"{s.error:.2g}",
                _change(s.parameters_before, s.parameters_after),
                _change(s.multiply_adds_before, s.multiply_adds_after),
            )
        return table

    def summary(self) -> list[str]:
        """The totals, a sentence each."""
        lines = [
            f"{len(self.converted)} converted, {len(self.found)} convertible, {len(self.skipped)} skipped "
            f"(seen through: {self.capture})"
        ]
        if self.parameters_before is not None:
            lines.append(f"parameters: {_change(self.parameters_before, self.parameters_after)}")
        if self.multiply_adds_before is not None:
            lines.append(
                f"multiply-adds of these sites: {_change(self.multiply_adds_before, self.multiply_adds_after)}"
            )
        if self.error is not None:
            lines.append(f"relative error of the model's output: {self.error:.2g}")
        return lines + [f"note: {note}" for note in self.notes]

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=120, color_system=None)
        if self.sites:
            console.print(self.table())
        console.print("\n".join(self.summary()), highlight=False, markup=False)
        return text.getvalue().rstrip()

    def __iter__(self) -> Iterator[SiteReport]:
        return iter(self.sites)


def attach(model: nn.Module, report: Report) -> None:
    """Keeps ``report`` on the model: it is copied with it and takes no part in its state dict."""
    model.__dict__["_pixelize_report"] = report


def report(model: nn.Module) -> Report:
    """What the last conversion (or repair, calibration, load) of ``model`` did.

    Raises PixelizeError if nothing of this package ever touched the model.
    """
    inner = getattr(model, "_orig_mod", model)
    found = inner.__dict__.get("_pixelize_report")
    if found is None:
        raise PixelizeError(
            f"this {type(model).__name__} was not converted: call pixelize.convert(model) first, or pixelize.inspect(model) "
            "to see what can be"
        )
    return found


def _total(values: Iterator[int | None] | Any) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _times(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _count(n: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def _change(before: int | None, after: int | None) -> str:
    if before is None:
        return ""
    return _count(before) if after is None or after == before else f"{_count(before)} > {_count(after)}"
