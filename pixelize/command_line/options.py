"""What the commands share: their options, how they read models and data, how they print."""

from __future__ import annotations

import inspect
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.batches import samples_of, selected
from pixelize.running.inputs import shape_of
from pixelize.running.outputs import parameter_not_finite, tensors
from pixelize.running.pictures import run
from pixelize.sources.inputs import drawn_inputs, parse_size, read_inputs, source_words
from pixelize.sources.opened import OpenedModel, open_model
from pixelize.sources.preparation import SCALES, Preparation
from pixelize.tables import Table, wrapped

EXIT_CODES = """**Exit codes**: 0 done; 1 refused or failed, with one sentence on standard error; 2 wrong
usage; 3 `repair`, `diagnose`: there was no pattern, `report --fail-above`, `measure --fail-above`: there is
one above; 4 `repair`: there is a pattern and it could not be taken out, `fold`: too far from the model."""
OLDER = {"input": "data", "inputs": "data", "i": "d"}
"""Spellings of earlier versions, still understood, by what they are now."""
SETTINGS: dict[str, Any] = {"token_normalize_func": lambda token: OLDER.get(token, token)}

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model; `pixelize --help` lists the forms.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", "-d", metavar="DATA",
        help="Picture, sound, folder, .zip, .npy, .npz or a shape (1x3x64x64); may be repeated. By default "
        "drawn pictures or random latents, whichever the model takes.",
    ),
]  # fmt: skip
Size = Annotated[str, typer.Option(metavar="H[xW]", help="Resize pictures to this height and width.")]
Scale = Annotated[
    str,
    typer.Option(
        help="What pictures become: unit [0,1], signed [-1,1], imagenet; auto: as its library does."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Pictures to read, or samples to draw, at most.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Weights = Annotated[
    str, typer.Option(metavar="FILE", help="Checkpoint to fill a named MODEL with: .safetensors, .pth, ...")
]
Arch = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="For a MODEL that is a file of weights: what makes the model, module:callable, file.py:callable "
        "or any other name. By default spandrel finds out.",
    ),
]
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


@dataclass(frozen=True)
class ModelOptions:
    """The options that commands on a model share."""

    model: ModelName
    data: Data = None
    size: Size = ""
    scale: Scale = "auto"
    seed: Seed = 0
    weights: Weights = ""
    arch: Arch = ""
    source: Source = ""
    device: Device = "cpu"
    as_json: AsJson = False

    def again(self) -> str:
        """MODEL and what belongs to it, as a shell takes it: to tell what to run next."""
        parts = [self.model]
        for name in ("arch", "weights", "source"):
            if getattr(self, name):
                parts += [f"--{name}", getattr(self, name)]
        return shlex.join([*parts, *(part for name in self.data or () for part in ("--data", name))])

    def open(self) -> OpenedModel:
        """The named model, filled and moved. Raises PixelizeError."""
        torch.manual_seed(self.seed)  # of weights that no file fills
        opened = open_model(self.model, arch=self.arch, weights=self.weights, source=self.source)
        return replace(opened, model=moved(opened.model, self.device))

    def read(self, opened: OpenedModel, count: int, crop: int = 0) -> tuple[list[Any], str]:
        """Inputs for the model, and what they are in words. Raises ArgumentError."""
        preparation = preparation_for(opened, self.scale)
        if self.data:
            inputs = read_inputs(
                self.data, preparation=preparation, size=parse_size(self.size) if self.size else None,
                count=count, seed=self.seed, crop=crop,
            )  # fmt: skip
            told = source_words(self.data, inputs)
        else:
            inputs, told = drawn_inputs(opened.model, preparation, count, self.seed)
        kind = next((p.dtype for p in opened.model.parameters() if p.is_floating_point()), torch.float32)
        return [_moved(x, self.device, kind) for x in inputs], told


def takes_model(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes of ``command(options, its own ...)`` a command with :class:`ModelOptions`, but for those named:
    MODEL, what it declares itself, the others. What it declares under an option's name stands for that one,
    and is given to it too.
    """
    hints = get_type_hints(ModelOptions, include_extras=True)
    names = [name for name in hints if name not in without]
    shared = {n: p for n, p in inspect.signature(ModelOptions).parameters.items() if n in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        declared = {p.name: p for p in own}
        first, *rest = [declared.pop(n, shared[n].replace(annotation=hints[n])) for n in names]
        parameters = [first, *declared.values(), *rest]

        @wraps(command)
        def run(**given: Any) -> None:
            options = ModelOptions(**{n: given[n] for n in names})
            command(options, **{p.name: given[p.name] for p in own})

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def moved(model: nn.Module, device: str) -> nn.Module:
    """``model`` on ``device``. Raises ArgumentError if there is no such device here."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        raise ArgumentError(f"device {device!r} cannot be used here ({text})") from error


def preparation_for(opened: OpenedModel, scale: str) -> Preparation:
    """As the model's library does it, or in the named range of values."""
    if scale == "auto":
        return opened.preparation
    if scale not in SCALES:
        raise ArgumentError(f"--scale {scale}: it is one of auto, {', '.join(SCALES)}")
    mean, deviation = SCALES[scale]
    return replace(opened.preparation, mean=mean, deviation=deviation)


def check_writable(out: Path) -> None:
    """Raises ArgumentError if no file can be made where ``out`` is to be: before the work, not after it."""
    nearest = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ArgumentError(f"{out}: nothing can be written there ({error.strerror})") from error


def runnable(model: nn.Module, batches: list[Any]) -> list[Any]:
    """``batches`` as the model takes them: as they are, or one sample at a time where it takes no more.

    Raises ArgumentError if the model does not run on the first of them, or gives NaN or inf for it.
    """
    count = samples_of(batches[0])
    trouble = _trouble(model, batches[0])
    if trouble and count > 1 and not _trouble(model, selected(batches[0], slice(0, 1), count)):
        return [selected(b, slice(n, n + 1), m) for b in batches for m in [samples_of(b)] for n in range(m)]
    if trouble:
        first = batches[0]
        whole = isinstance(first, Tensor) and not first.is_floating_point()
        odd = isinstance(first, Tensor) and first.dim() == 4 and any(n % 32 for n in first.shape[2:])
        hint = ": some models need sides that are multiples of 32 (--crop 96, --size 256)" if odd else ""
        hint = ": its numbers are whole, and most models take floating-point ones" if whole else hint
        raise ArgumentError(f"the model {trouble} an input of shape {shape_of(first)}{hint}")
    return batches


def _trouble(model: nn.Module, example: Any) -> str:
    """What is wrong when the model runs on ``example``; empty if nothing is."""
    with evaluation(model):
        try:
            outputs = tensors(run(model, example))
        except Exception as error:  # a stranger's forward may raise anything
            text = " ".join(str(error).split())[:300]
            return f"could not be run ({type(error).__name__}: {text}) on"
    if all(torch.isfinite(value).all() for value in outputs):
        return ""
    holder = parameter_not_finite(model)
    return f"gives NaN or inf{f' (its parameter {holder} holds such values)' if holder else ''} for"


def print_json(data: Any) -> None:
    """``data`` as JSON on standard output; numbers that JSON does not have become null."""
    typer.echo(json.dumps(_finite(data), indent=1, ensure_ascii=False))


def print_text(*things: str | Table) -> None:
    """On standard output, as wide as the terminal; nothing is cut off."""
    for thing in things:
        typer.echo(thing.text() if isinstance(thing, Table) else wrapped([thing]))


def print_error(line: str) -> None:
    """One line on standard error, however long."""
    errors.print(line, soft_wrap=True)


@contextmanager
def progress(first: str) -> Iterator[Any]:
    """A spinner on standard error that tells the step; nothing where that is no terminal."""
    with errors.status(f"{first} ...") as status:
        yield lambda step: status.update(f"{step} ...")


@contextmanager
def libraries_silent() -> Iterator[None]:
    """Without what libraries in C++ write to standard error (the profiler that measures memory does)."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _moved(value: Any, device: str, kind: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, kind) if value.is_floating_point() else value.to(device)
    if isinstance(value, Mapping):
        return {k: _moved(v, device, kind) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(v, device, kind) for v in value)
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
