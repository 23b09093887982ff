"""``pixelize bench``: the layers, or a model before and after its conversion, timed side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pixelize.benchmarking.layers import Case, run_bench
from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import compare_modules, measure_ceilings
from pixelize.command_line.options import (
    ModelOptions,
    libraries_silent,
    print_error,
    print_json,
    print_text,
    progress,
    runnable,
    takes_model,
)
from pixelize.conversion.convert import convert
from pixelize.errors import ArgumentError, NothingToConvertError
from pixelize.inheritance.record import converted_modules
from pixelize.running.inputs import one_sample, shape_of, whole_inputs
from pixelize.tables import Table

LAYERS = ("ipixeldcl", "pixeldcl", "dcl")
FREE = 1.05
"""Times the original's time up to which a conversion is called no slower."""


@takes_model()
def bench_command(
    options: ModelOptions,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model to convert and time; none: the layers.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="For a model: what to convert it into; may be repeated.")
    ] = None,
    dependency_groups: Annotated[
        int, typer.Option(help="For a model: groups of the dependency kernels; -1: depthwise.")
    ] = 1,
    dependency_kernel_size: Annotated[int, typer.Option(min=1, help="For a model: their side.")] = 3,
    schedule: Annotated[str, typer.Option(help="For a model: paired, sequential or masked.")] = "paired",
    channels: Annotated[int, typer.Option(min=1, help="For layers: channels out; twice as many in.")] = 32,
    pixels: Annotated[int, typer.Option(min=1, help="For layers: side of the input.")] = 32,
    kernel_size: Annotated[int, typer.Option(min=2, help="For layers: 4 is usual, always even.")] = 4,
    train: Annotated[bool, typer.Option("--train", help="Time the gradients too.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="In that memory format.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU; with 1 the thread's own time counts.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.0, help="To repeat everything for.")] = 5.0,
) -> None:
    """Time the layers, or a model as it came and converted, in interleaved runs of one process; one line says
    whether a model gets slower, and what to ask for.

    Examples:

    - `pixelize bench --channels 64 --pixels 16 --train`

    - `pixelize bench smp:Linknet --data 1x3x256x256 --layer ipixeldcl --layer dcl`

    - `pixelize bench smp:Unet --dependency-groups -1 --train --channels-last`
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ArgumentError(f"--dtype is {dtype!r}; choose float32, bfloat16 or float16")
    if model is None:
        if kernel_size % 2:
            raise ArgumentError("--kernel-size: an even number, so that the layers double the size exactly")
        case = Case(channels, pixels, kernel_size, batch, train, channels_last, dtype, compiled)
        with progress("timing"), libraries_silent():
            result = run_bench([case], device=options.device, threads=threads, seconds=seconds)
        machine, rows = result["machine"], result["cases"][0]["rows"]
        told = f"{batch}x{2 * channels}x{pixels}x{pixels}"
    else:
        with progress("building the model") as tell:
            opened = options.open()
            built = opened.model
            example = whole_inputs(built, runnable(built, options.read(opened, batch)[0][:1])[0])
            tell("converting")
            design: dict[str, Any] = dict(
                dependency_groups=dependency_groups, dependency_kernel_size=dependency_kernel_size,
                schedule=schedule,
            )  # fmt: skip
            models = _variants(built, layer or list(LAYERS), example, design)
            if layer is None and dependency_groups == 1:
                design["dependency_groups"] = -1
                models["ipixeldcl, depthwise"] = _variants(built, ["ipixeldcl"], example, design)["ipixeldcl"]
            tell("timing")
            machine = describe_machine(options.device, threads)
            kind = getattr(torch, dtype)
            form = torch.channels_last if channels_last else torch.contiguous_format
            placed = tree_map(lambda v: _placed(v, kind, form), example)
            for m in models.values():
                m.to(dtype=kind, memory_format=form).train(train)  # type: ignore[call-overload]
            with libraries_silent():
                timings = compare_modules(
                    models, placed, train=train, compiled=compiled, seconds=seconds,
                    ceilings=measure_ceilings(options.device, kind),
                )  # fmt: skip
            rows = [asdict(row) for row in timings]
        told = f"{model} on {shape_of(example)}"
        verdict = _verdict(rows)
        result = {
            "machine": machine, "model": model, "input": shape_of(example), "rows": rows, "verdict": verdict,
        }  # fmt: skip
    if options.as_json:
        print_json(result)
        return
    told += f", {'training' if train else 'prediction'}, {dtype}, {'NHWC' if channels_last else 'NCHW'}"
    told += ", compiled" if compiled else ""
    print_text(f"{told}; {machine['device']}, {machine['threads']} thread(s), {machine['clock']}")
    print_text(_table(rows))
    if model is not None:
        print_text(verdict)


def _placed(value: Any, dtype: torch.dtype, memory_format: torch.memory_format) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    value = value.to(dtype)
    return value.contiguous(memory_format=memory_format) if value.dim() == 4 else value


def _variants(
    built: nn.Module, layers: list[str], example: Any, design: dict[str, Any]
) -> dict[str, nn.Module]:
    """The model as it came and converted; ``"dcl"`` beside others may find nothing to convert."""
    if converted_modules(built):
        raise ArgumentError("the model is converted already; bench converts one that is not")
    models = {"as it came": built}
    for layer in layers:
        init = "random" if layer == "pixeldcl" else "inherit"  # a fit would not change its speed
        try:
            models[layer] = convert(built, layer, init=init, example_inputs=one_sample(example), **design)
        except NothingToConvertError:
            if layers == [layer] or layer != "dcl":
                raise
            print_error("note: dcl: all sites are transposed convolutions already")
    return models


def _verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the model gets slower, and what to ask for so that it does not: of what was timed."""
    told = {row["contender"]: f"{row['ratio']:.2f}" for row in rows[1:]}
    first, *others = rows[1:]
    verdict = f"Converted to {first['contender']} the model takes {told[first['contender']]} times its time"
    verdict += f" and has {first['parameters'] / max(1, rows[0]['parameters']):.2f} times its parameters"
    if first["ratio"] <= FREE:
        return f"{verdict}: it gets no slower."
    free = [row["contender"] for row in others if row["ratio"] <= FREE]
    if free:
        asked = " or ".join(f"{_option(name)} ({told[name]} times)" for name in free)
        return f"{verdict}. To get no slower ask for {asked}."
    name = min(rows[1:], key=lambda row: row["ratio"])["contender"]
    return (
        f"{verdict}. Nothing that was timed is as fast: {_option(name)} comes nearest ({told[name]} times)."
    )


def _option(contender: str) -> str:
    """What to ask ``pixelize convert`` for."""
    layer, _, depthwise = contender.partition(", ")
    exact = "" if layer != "pixeldcl" else ", which is fitted and not exact,"
    return f"--layer {layer}{' --dependency-groups -1' if depthwise else ''}{exact}"


def _table(rows: list[dict[str, Any]]) -> Table:
    heads = ("", "ms", "ratio", "quartiles", "peak MiB", "best ms", "MMAC", "parameters")
    cells = [
        (
            row["contender"],
            f"{row['median'] * 1e3:.3g}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
            f"{row['peak_memory'] / 2**20:.3g}",
            f"{row['roofline'] * 1e3:.3g}" if row["roofline"] else "",
            f"{row['multiply_adds'] / 1e6:,.4g}" if row["multiply_adds"] else "",
            f"{row['parameters']:,}",
        )
        for row in rows
    ]
    return Table(heads, cells)
