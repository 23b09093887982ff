"""What a diagnosis says, as values: sources of the pattern, up-samplers, levels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pixelize.measure.pictures import MADE, PictureLevels
from pixelize.tables import Table, html_lines, wrapped

SourceKind = Literal["up-sampler", "swapped phases", "inputs", "tiles", "elsewhere"]

_ADVICE = {
    "up-sampler": "pixelize.repair(model, data) may take out what up-samplers make",
    "swapped phases": "put the sub-kernels in their order (a mistake in porting); nothing is to be trained",
    "inputs": "clean the inputs, whose pattern is passed on (they may be decoded or enlarged pictures)",
    "tiles": "let the tiles overlap and blend them, or run the model on the whole",
    "elsewhere": "look at what else the model adds, or at what is done to its output",
}


@dataclass(frozen=True)
class PatternSource:
    """One origin of the pattern.

    ``names`` are modules, ``frequencies`` as :func:`pixelize.checkerboard`'s in words. ``share``: the part
    of what the pictures have over the natural level, at these frequencies, that goes when the source does
    (None where it cannot be taken out). ``detail`` tells which order, or what size of tiles.
    """

    kind: SourceKind
    names: tuple[str, ...] = ()
    frequencies: tuple[str, ...] = ()
    share: float | None = None
    detail: str = ""

    def sentence(self) -> str:
        """What it is and what it makes."""
        names = [name or "(the model)" for name in self.names]
        which = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
        told = {
            "up-sampler": f"{which} {'makes' if len(self.names) == 1 else 'make'} it",
            "swapped phases": f"the phases of {which} are in the wrong order (right: {self.detail})",
            "inputs": "it comes with the inputs",
            "tiles": f"the output is put together from tiles ({self.detail})",
            "elsewhere": "no up-sampler, and not the inputs",
        }[self.kind]
        if self.frequencies:
            shown = ", ".join(self.frequencies[:4]) + (" ..." if len(self.frequencies) > 4 else "")
            told += f", at {shown}"
        if self.share is not None:
            pattern = "without its pattern" if len(names) == 1 else "without their patterns"
            told += (
                f": {'with clean inputs' if self.kind == 'inputs' else pattern} {self.share:.0%} of it goes"
            )
        return f"{told}."


@dataclass(frozen=True)
class UpSamplerRow:
    """One up-sampler: what its phases make of constants (dB; even ones -120) and of steps (how rough: 0 as
    interpolation, 1 as repetition, 4 back to front), and by how many dB each frequency that stands out falls
    without its pattern.
    """

    name: str
    kind: str
    stride: tuple[int, ...]
    calls: int
    constant: float
    roughness: float
    falls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Which part of a model makes the pattern in its pictures, waveforms or volumes.

    ``levels``: what these show. ``sources``: where it comes from, the largest share first; empty where
    nothing stands out. ``up_samplers``: all that were seen to run, in their order.
    """

    levels: PictureLevels
    sources: tuple[PatternSource, ...]
    up_samplers: tuple[UpSamplerRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether there is nothing to be explained."""
        return not self.sources

    def sentences(self) -> list[str]:
        """The verdict: what the pictures show, where it comes from, what to do, what else is to be known."""
        made = MADE[self.levels.axes][0]
        return [f"{self.levels.pictures} {made}: {self.levels.sentence()}.", *self.explained(), *self.notes]

    def explained(self) -> list[str]:
        """A sentence for each source, and what to do."""
        told = [source.sentence() for source in self.sources]
        advice = [f"What to do: {_ADVICE[kind]}." for kind in dict.fromkeys(s.kind for s in self.sources)]
        return told + advice

    def table(self) -> Table:
        """The up-samplers."""
        shown = [p.name for p in self.levels.noticeable[:3]]
        rows = [
            (
                row.name or "(the model)", row.kind, "x".join(map(str, row.stride)), str(row.calls),
                f"{row.constant:.0f}", f"{row.roughness:.2g}",
                *(f"{row.falls.get(f, 0.0):.1f}" for f in shown),
            )
            for row in self.up_samplers
        ]  # fmt: skip
        heads = ("up-sampler", "kind", "stride", "calls", "constant, dB", "roughness")
        return Table((*heads, *(f"falls at {f}, dB" for f in shown)), rows, 2)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data that ``json.dumps`` takes."""
        return {
            "sentences": self.sentences(),
            "levels": self.levels.to_dict(),
            "sources": [asdict(source) for source in self.sources],
            "up_samplers": [asdict(row) for row in self.up_samplers],
            "notes": list(self.notes),
        }

    def text(self, width: int | None = None) -> str:
        """The verdict and the table in lines of ``width``, the terminal's by default."""
        table = ["", self.table().text(width)] if self.up_samplers else []
        return "\n".join([wrapped(self.sentences(), width), *table])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        kinds = ", ".join(f"{s.kind} {' '.join(s.names)}".strip() for s in self.sources)
        return f"<Diagnosis: {kinds or 'nothing stands out'}>"

    def _repr_html_(self) -> str:
        return html_lines(self.sentences()) + (self.table().html() if self.up_samplers else "")
