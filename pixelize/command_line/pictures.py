"""``pixelize measure``: pictures of which nothing else is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from torch import Tensor

from pixelize.command_line.options import AsJson, print_json, print_text, progress
from pixelize.measure.pictures import PERIODS, measure_pictures, where
from pixelize.sources.pictures import PassedOver, frames, listed


def measure_command(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURES...", help="Files, folders, .zip archives; GIFs by their frames."),
    ],
    period: Annotated[
        list[int] | None, typer.Option(min=2, help="Up-sampling factor to look for; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Files to read at most.")] = 1000,
    fail_above: Annotated[
        float | None, typer.Option(metavar="DB", help="Exit with 3 if a level is above this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the checkerboard in pictures: in dB over what is natural, at each period that is plausible, and
    where in the picture it is.

    Pictures are measured together. Do not scale them before: that moves the pattern.

    Examples:

    - `pixelize measure samples/`

    - `pixelize measure video.gif frame.png --period 8 --json`
    """
    files = [file for name in pictures for file in listed(name)][:count]
    first: list[Tensor] = []
    passed = PassedOver()

    def read() -> Iterator[Tensor]:
        for file in files:
            with passed.over(file):
                for frame in frames(file, every_frame=True):
                    first[:] = first or [frame]
                    yield frame
        passed.tell(bool(first))

    with progress(f"measuring {_number(len(files), 'file')}"):
        measured = measure_pictures(read(), period or PERIODS)
    stands_out = measured.noticeable
    cells = where(first[0], stands_out[0].period) if stands_out else []
    worst = max(level for p in measured.patterns for level in p.levels.values())
    if as_json:
        print_json({**measured.to_dict(), "worst": worst, "where": cells})
    else:
        print_text(
            f"{_number(measured.pictures, 'picture')} of {_number(len(files), 'file')}: {measured.sentence()}"
        )
        print_text(measured.table())
        for left_out in measured.left_out:
            print_text(f"period {left_out} was not looked for: the pictures are too small")
        if cells:
            print_text("where in the first picture, from 0 to 9:", *_map(cells))
    if fail_above is not None and worst > fail_above:
        raise typer.Exit(3)


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _map(cells: list[list[float]]) -> list[str]:
    """A digit for each cell, 9 for the strongest."""
    most = max(max(row) for row in cells) or 1.0
    return ["  " + " ".join(str(round(9 * value / most)) for value in row) for row in cells]
