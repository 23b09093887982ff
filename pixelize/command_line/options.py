"""What the commands share: their options, how they read models and inputs, how they print."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.running.inputs import default_inputs, picture_channels
from pixelize.sources.inputs import parse_size, read_inputs, source_words
from pixelize.sources.models import build_model
from pixelize.sources.weights import load_weights

EXIT_CODES = """**Exit codes**: 0 done; 1 refused or failed, with one sentence on standard error;
2 wrong usage; 3 `report --fail-above`: the checkerboard is above."""

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model; `pixelize --help` lists the forms.")
]
InputNames = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", metavar="INPUT",
        help="Picture, folder, .npy, .npz or shape; may be repeated. By default random numbers that suit the "
        "model.",
    ),
]  # fmt: skip
Size = Annotated[str, typer.Option(metavar="H[xW]", help="Resize pictures to this height and width.")]
Scale = Annotated[str, typer.Option(help="What pictures become: unit [0,1], signed [-1,1] or imagenet.")]
Count = Annotated[int, typer.Option(min=1, help="Pictures to read, or samples to draw, at most.")]
Seed = Annotated[int, typer.Option(help="Of random inputs.")]
Weights = Annotated[
    str,
    typer.Option(metavar="FILE", help="Checkpoint to fill the model with: .safetensors, or .pt of tensors."),
]  # fmt: skip
Source = Annotated[
    str, typer.Option(metavar="MODEL", help="What a saved folder's model is built from, if not as it notes.")
]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

_PLAIN: dict[str, Any] = {
    "markup": False,
    "emoji": False,
    "highlight": False,
}  # ":key:" in a name is no emoji
errors = Console(stderr=True, **_PLAIN)
"""Where progress goes; results go to standard output."""


def read_model(name: str, source: str, weights: str, device: str) -> nn.Module:
    """The named model, filled and moved. Raises PixelizeError."""
    model = build_model(name, source=source or None)
    if weights:
        load_weights(model, weights)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        raise ArgumentError(f"device {device!r} cannot be used here ({text})") from error


def read_data(
    model: nn.Module, names: list[str] | None, size: str, scale: str, count: int, seed: int, device: str
) -> tuple[list[Any], str]:
    """Inputs for ``model`` on ``device``, and what they are in words. Raises ArgumentError."""
    if names:
        found = read_inputs(
            names, channels=picture_channels(model), size=parse_size(size) if size else None,
            scale=scale, count=count, seed=seed,  # type: ignore[arg-type]
        )  # fmt: skip
        told = source_words(names, found)
    else:
        found, told = default_inputs(model, count, seed)
    return [_moved(x, device) for x in found], told


def print_json(data: Any) -> None:
    """``data`` as JSON on standard output; numbers that JSON does not have become null."""
    typer.echo(json.dumps(_finite(data), indent=1, ensure_ascii=False))


def print_rich(*things: Any) -> None:
    """On standard output, as wide as the terminal; strings as they are, without markup."""
    Console(**_PLAIN).print(*things, sep="\n")


def print_error(line: str) -> None:
    """One line on standard error, however long."""
    errors.print(line, soft_wrap=True)


@contextmanager
def progress(first: str) -> Iterator[Any]:
    """A spinner on standard error that tells the step; nothing where that is no terminal."""
    with errors.status(f"{first} ...") as status:
        yield lambda step: status.update(f"{step} ...")


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(v, device) for v in value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(v) for v in value]
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    return value
