"""``pixelize measure``: pictures, sounds and volumes of which nothing else is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from torch import Tensor

from pixelize.command_line.options import AsJson, print_json, print_text, progress
from pixelize.errors import ArgumentError
from pixelize.measure.any_levels import measure_any
from pixelize.measure.pictures import MADE, PERIODS, PictureLevels, measure_pictures, where
from pixelize.sources.arrays import ARRAYS, arrays
from pixelize.sources.passed_over import PassedOver, Place
from pixelize.sources.pictures import ending_of, frames, listed, told
from pixelize.sources.sounds import SOUNDS, waveforms


def measure_command(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Pictures, sounds, .npy or .npz files; folders and .zip archives of them; GIFs by frames.",
        ),
    ],
    period: Annotated[
        list[int] | None, typer.Option(min=2, help="Up-sampling factor to look for; may be repeated.")
    ] = None,
    axes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=3,
            help="Of array files: 1 waveforms (L), 2 pictures (H, W), 3 volumes "
            "(D, H, W), after axes for channels and samples if there are any.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Files to read at most.")] = 1000,
    fail_above: Annotated[
        float | None, typer.Option(metavar="DB", help="Exit with 3 if a level is above this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the checkerboard in pictures: in dB over what is natural, at each period that is plausible, and
    where in the picture it is. In sounds and volumes (arrays), the same pattern over what lies around it.

    All are measured together. Do not scale pictures or resample sounds before: that moves the pattern.

    Examples:

    - `pixelize measure samples/`

    - `pixelize measure video.gif frame.png --period 8 --json`

    - `pixelize measure speech.wav`

    - `pixelize measure volumes.npy --axes 3`
    """  # fmt: skip
    files = [file for name in data for file in listed(name, SOUNDS, ARRAYS)][:count]
    kinds = {"arrays": ARRAYS, "sounds": SOUNDS}
    found = {next((k for k, those in kinds.items() if ending_of(f) in those), "pictures") for f in files}
    if len(found) > 1:
        raise ArgumentError(f"{' and '.join(sorted(found))}: measure them apart")
    (kind,) = found
    if axes is not None and kind != "arrays":
        raise ArgumentError(f"--axes belongs to array files; these are {kind}")
    cells: list[list[float]] = []
    with progress(f"measuring {_number(len(files), 'file')}"):
        if kind == "pictures":
            measured, cells = _pictures(files, period)
        else:
            measured = measure_any(_sounds(files) if kind == "sounds" else _arrays(files, axes), period)
    worst = max(level for p in measured.patterns for level in p.levels.values())
    made, of = MADE[measured.axes]
    if as_json:
        print_json({**measured.to_dict(), "worst": worst, "where": cells})
    else:
        many = _number(measured.pictures, made.removesuffix("s"))
        print_text(f"{many} of {_number(len(files), 'file')}: {measured.sentence()}")
        print_text(measured.table())
        for left_out in measured.left_out:
            print_text(f"period {left_out} was not looked for: the {made} have too few {of}")
        if cells:
            print_text("where in the first picture, from 0 to 9:", *_map(cells))
    if fail_above is not None and worst > fail_above:
        raise typer.Exit(3)


def _pictures(files: Sequence[Place], period: list[int] | None) -> tuple[PictureLevels, list[list[float]]]:
    """What pictures show, and where in the first of them."""
    first: list[Tensor] = []
    passed = PassedOver()

    def read() -> Iterator[Tensor]:
        for file in files:
            with passed.over(file):
                for frame in frames(file, every_frame=True):
                    first[:] = first or [frame]
                    yield frame
        passed.tell(bool(first))

    measured = measure_pictures(read(), period or PERIODS)
    stands_out = measured.noticeable
    return measured, where(first[0], stands_out[0].period) if stands_out else []


def _sounds(files: Sequence[Place]) -> Iterator[Tensor]:
    """(1, channels, samples) each."""
    passed, some = PassedOver(), False
    for wave in waveforms(files, passed, None, False, len(files)):
        some = True
        yield wave[None]
    passed.tell(some)


def _arrays(files: Sequence[Place], axes: int | None) -> Iterator[Tensor]:
    """Batches with axes for samples and channels. Raises ArgumentError for what may be several things."""
    passed, some = PassedOver(), False
    for file, read in arrays(files, passed):
        some = True
        for array in read.values() if isinstance(read, dict) else [read]:
            n = axes if axes is not None else {1: 1, 5: 3}.get(array.dim())
            if n is None or not n <= array.dim() <= n + 2:
                shape = "x".join(map(str, array.shape))
                raise ArgumentError(
                    f"{told(file)}: an array of {shape}; --axes says how many of its last axes are a sound's "
                    "(1), a picture's (2) or a volume's (3); before them may be channels, and samples"
                )
            yield array.reshape((1,) * (n + 2 - array.dim()) + array.shape)
    passed.tell(some)


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _map(cells: list[list[float]]) -> list[str]:
    """A digit for each cell, 9 for the strongest."""
    most = max(max(row) for row in cells) or 1.0
    return ["  " + " ".join(str(round(9 * value / most)) for value in row) for row in cells]
