"""``pixelize inspect`` and ``pixelize convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pixelize.checkpoints.formats import is_checkpoint
from pixelize.command_line.options import (
    Count,
    ModelOptions,
    check_writable,
    print_error,
    print_json,
    print_text,
    progress,
    runnable,
    takes_model,
)
from pixelize.conversion.convert import convert
from pixelize.conversion.inspect import inspect
from pixelize.conversion.report import report
from pixelize.conversion.saved import save
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.inheritance.record import converted_modules, kept_report
from pixelize.running.inputs import one_sample, whole_inputs
from pixelize.sources.models import portable_source


@takes_model()
def inspect_command(
    options: ModelOptions,
) -> None:
    """Find the layers of a model that up-sample, and what each would become. Changes nothing.

    Examples:

    - `pixelize inspect smp:Linknet`

    - `pixelize inspect "smp:Unet?encoder_name=resnet18&classes=3" --data 1x3x256x256`

    - `pixelize inspect diffusers:AutoencoderKL --json`
    """
    with progress("building the model") as tell:
        opened = options.open()
        built = opened.model
        tell("looking for up-samplers")
        example = None
        try:
            example = one_sample(whole_inputs(built, options.read(opened, 1)[0][0]))
        except ArgumentError:
            if options.data:
                raise
        seen = report(built) if converted_modules(built) else inspect(built, example)
        if not converted_modules(built) and (loaded := kept_report(built)) is not None:
            seen.notes.extend(loaded.notes)  # a saved folder of a model that was repaired alone
    if options.as_json:
        print_json({"model": options.model, **seen.to_dict()})
        return
    typer.echo(str(seen))
    if seen.found:
        again = options.again()
        print_text(f"next: pixelize convert {again} --out FOLDER, or pixelize report {again}")
    elif not seen.converted:
        print_text("nothing here can be converted")
        if not opened.trained:
            print_text(
                "this is its default configuration, unlike a trained one perhaps: name a folder or options"
            )


@takes_model()
def convert_command(
    options: ModelOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the converted model to.")],
    layer: Annotated[str, typer.Option(help="ipixeldcl (exact), pixeldcl, auto or dcl.")] = "ipixeldcl",
    init: Annotated[str, typer.Option(help="inherit, calibrate (needs --data) or random.")] = "inherit",
    tolerance: Annotated[float, typer.Option(help="For auto: relative error allowed at each site.")] = 0.01,
    include: Annotated[list[str] | None, typer.Option(help="Only sites of this name, or pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No sites of this name, or pattern.")] = None,
    sites: Annotated[
        str, typer.Option(help="Kinds of sites, separated by commas.")
    ] = "conv_transpose,resize_conv,pixel_shuffle",
    dependency_groups: Annotated[
        int, typer.Option(help="Groups of the dependency kernels; -1: depthwise.")
    ] = 1,
    dependency_kernel_size: Annotated[int, typer.Option(min=1, help="Side of the dependency kernels.")] = 3,
    schedule: Annotated[str, typer.Option(help="paired, sequential or masked.")] = "paired",
    count: Count = 256,
) -> None:
    """Convert a model and write it to a folder that `pixelize.load` and the other commands read.

    Examples:

    - `pixelize convert smp:Linknet --weights trained.pt --out converted/`

    - `pixelize convert my_models.py:generator --layer pixeldcl --init calibrate --data latents.npy -o out/`

    - `pixelize convert smp:Unet --include "decoder.blocks.4.*" --dependency-groups -1 -o out/`
    """  # fmt: skip
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"{out}: a file; --out names a folder")
    check_writable(out)
    with progress("building the model") as tell:
        opened = options.open()
        built = opened.model
        if converted_modules(built):
            raise PixelizeError(
                f"{options.model}: converted already; see it with pixelize inspect {options.model}"
            )
        fitted = init == "calibrate" or layer == "auto"
        samples, _ = options.read(opened, count if fitted else 1)
        samples = runnable(built, samples)
        if fitted and not options.data:
            print_error("note: no --data: fitted on what was drawn; real inputs are better")
        tell("converting")
        converted = convert(
            built, layer, init=init, data=samples if fitted else None,
            example_inputs=one_sample(whole_inputs(built, samples[0])),
            include=include or "*", exclude=exclude or (), sites=tuple(sites.split(",")), inplace=True,
            tolerance=tolerance,
            dependency_groups=dependency_groups, dependency_kernel_size=dependency_kernel_size,
            schedule=schedule,
        )  # fmt: skip
        save(converted, out, source=_noted(options.source or options.arch or options.model))
    result = report(converted)
    if options.as_json:
        print_json({"model": options.model, "folder": str(out), **result.to_dict()})
        return
    typer.echo(str(result))
    print_error(f"wrote {out}")


def _noted(name: str) -> str | None:
    """What a saved folder notes that its model is built from; a file of weights builds none by itself."""
    return None if is_checkpoint(name) else portable_source(name)
