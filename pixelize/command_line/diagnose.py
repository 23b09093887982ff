"""``pixelize diagnose``: which part of a model makes the pattern, if any does."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelize.command_line.options import (
    ModelOptions,
    print_error,
    print_json,
    progress,
    runnable,
    takes_model,
)
from pixelize.diagnosis.diagnose import diagnose
from pixelize.diagnosis.reruns import SAMPLES


@takes_model()
def diagnose_command(
    options: ModelOptions,
    count: Annotated[
        int, typer.Option(min=1, max=SAMPLES, help="Pictures or sounds, or samples to draw.")
    ] = SAMPLES,
    crop: Annotated[int, typer.Option(min=16, help="Larger pictures are cut to crops of this.")] = 256,
) -> None:
    """Which layer makes the checkerboard: an up-sampler, its phases in the wrong order, the inputs, tiles, or
    none of the up-samplers?

    The model is run again and again on the same data without the pattern of one up-sampler at a time. Exit
    codes: 0 there is a pattern, and this is where it comes from; 3 there is none.

    Examples:

    - `pixelize diagnose 4x_mine.pth --data photos/`

    - `pixelize diagnose diffusers:sd/vae --data photos/ --json`

    - `pixelize diagnose codec.pth --arch codec.py:Codec --data speech/`
    """
    with progress("reading the model") as tell:
        opened = options.open()
        samples, told = options.read(opened, count, crop)
        samples = runnable(opened.model, samples)
        tell("running it without one up-sampler at a time")
        diagnosis = diagnose(opened.model, samples)
    if not opened.trained:
        print_error("warning: the model's weights are random: --weights fills it with a checkpoint")
    if options.as_json:
        print_json({"model": options.model, "what": opened.told, "data": told, **diagnosis.to_dict()})
    else:
        typer.echo(f"{options.model}: {opened.told}\ndata: {told}\n{diagnosis}")
    if diagnosis.clean:
        raise typer.Exit(3)
