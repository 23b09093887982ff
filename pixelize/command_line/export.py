"""``pixelize fold`` and ``pixelize export``: for runtimes without this package; the cost is said first."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from pixelize.benchmarking.timing import compare_modules, measure_ceilings
from pixelize.command_line.options import (
    ModelOptions,
    check_writable,
    libraries_silent,
    print_error,
    print_json,
    print_text,
    progress,
    runnable,
    takes_model,
)
from pixelize.conversion.fold import fold
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.extras import require
from pixelize.files import replacing
from pixelize.layers.pixel_dcl import PixelDeconvolution
from pixelize.measure.decibels import psnr
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.inputs import shape_of
from pixelize.running.outputs import relative_error
from pixelize.running.pictures import pictures_of, run
from pixelize.sources.onnx_graph import run_onnx
from pixelize.sources.written import checkpoint_of

FAR = 40.0
"""dB of PSNR under which a folded model is written only if asked twice."""


@takes_model()
def fold_command(
    options: ModelOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help=".safetensors or .pth for the weights, .pt2 for a program of torch.export."
        ),
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help=f"Write it though it is under {FAR:g} dB from the model.")
    ] = False,
) -> None:
    """Every PixelDCL and iPixelDCL as one plain transposed convolution with a larger kernel.

    Exact but for a border of some pixels, and slower. An ONNX file of the model as it is needs no folding:
    `pixelize export`. The difference and the cost are measured and told before anything is written; where the
    pictures are far apart nothing is written unless `--anyway`, and the exit code is 4.

    Example: `pixelize fold converted/ --data photos/ --out folded.pt2`
    """
    if out.suffix.lower() not in (".safetensors", ".pth", ".pt2"):
        raise ArgumentError(f"{out}: end --out with .safetensors, .pth or .pt2")
    check_writable(out)
    with progress("building the model") as tell:
        opened = options.open()
        samples, told = options.read(opened, 8)
        samples = runnable(opened.model, samples)
        tell("folding")
        folded = fold(opened.model)
        tell("measuring")
        result = {"model": options.model, "data": told, **_differences(opened.model, folded, samples)}
    if not options.as_json:
        _tell(result, "folded")
    far = result["psnr"] is not None and result["psnr"] < FAR
    if not far or anyway:
        if out.suffix.lower() == ".pt2":
            with evaluation(folded), replacing(out) as file, file.open("wb") as opened_file:
                torch.export.save(torch.export.export(folded, *_arguments(samples[0])), opened_file)
        else:
            checkpoint_of(folded, options.model).write(out, {})
        result["files"] = [str(out)]
    if options.as_json:
        print_json(result)
    elif "files" in result:
        print_text(f"wrote {out}")
    else:
        print_text(f"not written: under {FAR:g} dB from the model; --anyway writes it")
    if "files" not in result:
        raise typer.Exit(4)


@takes_model(without=("device",))
def export_command(
    options: ModelOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="As ONNX (the only format there is).", hidden=True)
    ] = True,
    folded: Annotated[bool, typer.Option("--fold", help="Fold first; see `pixelize fold`.")] = False,
    fixed: Annotated[bool, typer.Option("--fixed", help="Of the data's own size, and of no other.")] = False,
) -> None:
    """Write a model, converted or not, as an ONNX graph of plain operators, for any number and size of inputs
    where the model allows it.

    The graph is run in onnxruntime and compared with the model before it takes its place.

    Example: `pixelize export converted/ --data photos/ --out model.onnx`
    """
    if out.suffix.lower() != ".onnx":
        raise ArgumentError(f"{out}: end --out with .onnx")
    check_writable(out)
    require("onnx", "pixelize export")
    with progress("building the model") as tell:
        opened = options.open()
        samples, told = options.read(opened, 2)
        samples = runnable(opened.model, samples)
        exported = fold(opened.model) if folded else opened.model
        result: dict[str, Any] = {"model": options.model, "data": told}
        if folded:
            tell("measuring")
            result |= _differences(opened.model, exported, samples)
            if not options.as_json:
                _tell(result, "folded")
        with replacing(out) as file:
            tell("exporting")
            result["sizes"] = _export(exported, samples[0], file, fixed)
            tell("comparing")
            result["error"] = _graph_error(exported, samples[0], file)
            if result["error"] is not None and not result["error"] <= 1e-3:
                raise PixelizeError(
                    f"{out}: not written: the graph differs from the model in onnxruntime (relative error "
                    f"{result['error']:.2g})"
                )
    if options.as_json:
        print_json({**result, "files": [str(out)]})
        return
    if result["error"] is not None:
        print_text(f"in onnxruntime, within {result['error']:.1g} of the model's outputs")
    print_text(f"inputs of {result['sizes']}", f"wrote {out}")


def _differences(model: nn.Module, other: nn.Module, samples: list[Any]) -> dict[str, Any]:
    """How far two models' outputs are apart, and what they cost."""
    with evaluation(model), evaluation(other):
        pairs = [(run(model, x), run(other, x)) for x in samples]
    pictures = [(pictures_of(a), pictures_of(b)) for a, b in pairs]
    likenesses = [psnr([a], [b]) for a, b in pictures if a is not None and b is not None]
    with libraries_silent():
        rows = compare_modules(
            {"model": model, "other": other}, samples[0], train=False, compiled=False, seconds=1.0,
            ceilings=measure_ceilings("cpu", torch.float32),
        )  # fmt: skip
    kernels = [m.kernel_size for m in other.modules() if isinstance(m, nn.ConvTranspose2d)]
    before = [m for m in model.modules() if isinstance(m, PixelDeconvolution)]
    return {
        "layers": len(before),
        "kernel_sizes": kernels,
        "error": max(relative_error(a, b) for a, b in pairs),
        "psnr": min(likenesses, default=None),
        "times_slower": rows[1].median / rows[0].median,
        "multiply_adds": [row.multiply_adds for row in rows],
    }


def _tell(result: dict[str, Any], name: str) -> None:
    distance = "" if result["psnr"] is None else f", {result['psnr']:.1f} dB PSNR"
    distance = f"{distance} (a border of some pixels differs)" if result["error"] else ""
    print_text(
        f"{name}: {result['layers']} layers become plain ones with kernels up to "
        f"{max((max(k) for k in result['kernel_sizes']), default=0)}",
        f"relative error of the outputs {result['error']:.2g}{distance}",
        f"it takes {result['times_slower']:.1f} times as long",
    )


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def _export(model: nn.Module, example: Any, file: Path, fixed: bool) -> str:
    """Writes the graph; returns the sizes that it takes, in words."""
    free = None
    if not fixed and isinstance(example, Tensor):
        if len(example) == 1:
            example = torch.cat([example, example])  # of one, torch.export takes the number for a constant
        places = [0, *(i for i in range(2, example.dim()) if example.shape[i] > 1)]
        free = (dict.fromkeys(places, torch.export.Dim.DYNAMIC),)
    positional, named = _arguments(example)
    with evaluation(model), libraries_silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for shapes in (free, None) if free else (None,):
            try:
                program = torch.onnx.export(
                    model, positional, kwargs=named, dynamo=True, dynamic_shapes=shapes, verbose=False
                )
                assert program is not None
                program.save(str(file), external_data=False)
                return "any number and size" if shapes else f"{shape_of(example)} alone"
            except Exception as error:  # torch.export's and the exporter's own errors
                failure = error
    text = " ".join(str(failure).split())[:200]
    raise PixelizeError(f"the model cannot be exported ({type(failure).__name__}: {text})")


def _graph_error(model: nn.Module, example: Any, file: Path) -> float | None:
    if not isinstance(example, Tensor):
        print_error("note: not compared in onnxruntime: the model takes more than one tensor")
        return None
    outputs = run_onnx(file, example)
    if outputs is None:
        return None
    with evaluation(model):
        return relative_error(run(model, example), outputs[0] if len(outputs) == 1 else outputs)
