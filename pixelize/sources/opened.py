"""A model and the file that it came from: what MODEL, ``--arch`` and ``--weights`` mean together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.checkpoints.formats import is_checkpoint, read_checkpoint
from pixelize.checkpoints.model_folder import read_folder
from pixelize.conversion.saved import load
from pixelize.conversion.saved_plan import PLAN
from pixelize.errors import ArgumentError, LoadError
from pixelize.running.inputs import input_channels
from pixelize.sources.models import build_model, has_weights, library_folder
from pixelize.sources.onnx_graph import onnx_model
from pixelize.sources.original_names import fill_renamed
from pixelize.sources.preparation import PLAIN, Preparation, preparation_of
from pixelize.sources.spandrel_file import spandrel_model
from pixelize.sources.weights import fill


@dataclass(frozen=True)
class OpenedModel:
    """A model in evaluation mode, and how to get back to what it was read from.

    ``checkpoint`` is None where there is no file (a model that a callable made, say). ``names`` are the
    file's tensors by the model's keys, as far as known, ``used`` all that the model was filled from.
    ``reread`` reads a file of the same kind in the same way. ``trained`` is False where the weights are
    surely random.
    """

    name: str
    model: nn.Module
    told: str
    checkpoint: Checkpoint | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    used: tuple[str, ...] = ()
    reread: Callable[[Path], nn.Module] | None = None
    preparation: Preparation = PLAIN
    trained: bool = True


def open_model(name: str, *, arch: str = "", weights: str = "", source: str = "") -> OpenedModel:
    """The model that ``name`` stands for: a name of :mod:`pixelize.sources.models`, or a file of weights.

    A ``.onnx`` file is a model by itself; of other files spandrel detects the architecture, or ``arch`` names
    it, as ``name`` could. ``weights`` is a file to fill a named model with, ``source`` what a folder of
    :func:`pixelize.save` is built from: a name, or a file of weights.

    Raises:
        ArgumentError: nothing has that name, or arguments that do not belong together.
        LoadError: a file that cannot be read, or does not fit its model.
        PixelizeError: a package is not installed; the message names the pip command.
    """
    if arch and weights:
        raise ArgumentError(
            "--arch belongs to a MODEL that is a file of weights, --weights to one that is none"
        )
    if is_checkpoint(name) and ":" not in Path(name).name.partition("?")[0]:
        return _of_file(name, arch)
    if arch:
        raise ArgumentError(f"--arch belongs to a file of weights ({name!r} is none)")
    if weights:
        return _filled(name, weights, source)
    if (Path(name) / PLAN).is_file() and is_checkpoint(source):
        base = _of_file(source, "")
        model = load(name, into=base.model).eval()
        return OpenedModel(name, model, base.told, preparation=base.preparation)
    of_library = library_folder(name)
    if of_library is not None:
        return _of_folder(*of_library)
    model = build_model(name, source=source or None)
    return OpenedModel(
        name, model, type(model).__name__, preparation=_prepared(name, model), trained=has_weights(name)
    )


def _of_file(name: str, arch: str) -> OpenedModel:
    path = Path(name)
    if arch:
        if path.suffix.lower() == ".onnx":
            raise ArgumentError(f"{name}: an ONNX graph is a model by itself; leave --arch out")
        return replace(_filled(arch, name, ""), name=name)
    checkpoint = read_checkpoint(path)
    if path.suffix.lower() == ".onnx":
        model, names, preparation = onnx_model(path)
        return OpenedModel(
            name, model, "an ONNX graph", checkpoint, names, tuple(checkpoint.tensors),
            lambda file: onnx_model(file)[0], preparation,
        )  # fmt: skip
    model, told, preparation, ids = spandrel_model(checkpoint)
    used = tuple(n for n, t in checkpoint.tensors.items() if id(t) in ids)
    return OpenedModel(
        name, model, told, checkpoint, {}, used,
        lambda file: spandrel_model(read_checkpoint(file))[0], preparation,
    )  # fmt: skip


def _filled(name: str, weights: str, source: str) -> OpenedModel:
    """A named model with a file's weights in it."""
    if Path(weights).suffix.lower() == ".onnx":
        raise LoadError(f"{weights}: an ONNX graph is a model by itself: pixelize COMMAND {weights}")

    def build() -> nn.Module:
        return build_model(name, source=source or None)

    def reread(file: Path) -> nn.Module:
        model = build()
        _fill(model, read_checkpoint(file))
        return model

    model, checkpoint = build(), read_checkpoint(weights)
    names = _fill(model, checkpoint)
    told = f"{type(model).__name__} with the weights of {weights}"
    return OpenedModel(
        name, model, told, checkpoint, names, tuple(names.values()), reread, _prepared(name, model)
    )


def _fill(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """:func:`fill`, or else by the original code's names: which tensor became which is then not known."""
    try:
        return fill(model, checkpoint)
    except LoadError:
        if not fill_renamed(model, checkpoint):
            raise
        return {}


def _of_folder(name: str, scheme: str, folder: Path, options: Mapping[str, Any]) -> OpenedModel:
    """What a library reads from a folder of its own."""
    model = build_model(name)
    checkpoint = read_folder(folder, options.get("variant"))
    kept = "&".join(f"{k}={v!r}" for k, v in options.items() if k != "subfolder")

    def reread(written: Path) -> nn.Module:
        return build_model(f"{scheme}:{written}{'?' if kept else ''}{kept}")

    return OpenedModel(
        name, model, f"{type(model).__name__} of {folder}", checkpoint, {}, tuple(checkpoint.tensors),
        reread, _prepared(name, model, folder),
    )  # fmt: skip


def _prepared(name: str, model: nn.Module, folder: Path | None = None) -> Preparation:
    known = preparation_of(name.partition(":")[0], model, folder)
    rate = getattr(getattr(model, "config", None), "sampling_rate", None)
    channels = known.channels or input_channels(model)
    return replace(known, channels=channels, rate=rate if isinstance(rate, int) else None)
