"""A repaired model back into the kind of file that it came from, checked by reading that again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pixelize.checkpoints.checkpoint import Checkpoint, same_bits
from pixelize.checkpoints.formats import TORCH, same_kind
from pixelize.checkpoints.match import changed_tensors
from pixelize.checkpoints.model_folder import check_no_other_weights
from pixelize.checkpoints.patch import write_patch
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.files import replacing, write_bytes
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.outputs import relative_error
from pixelize.running.pictures import run
from pixelize.sources.onnx_graph import run_onnx
from pixelize.sources.opened import OpenedModel

CLOSE = 1e-4
"""Relative error that rounding may make between a float32 file's model and the repaired one."""
ROUNDED = 5e-3
"""Relative error from which a file of few bits is said to hold another model than was measured."""


@dataclass(frozen=True)
class Written:
    """What was written: the files, the names of the tensors in them that differ from the file before (of
    ``total``), and how it was checked, in words. ``error``: of the written file's outputs, relative to the
    repaired model's largest.
    """

    files: list[Path]
    tensors: list[str]
    total: int
    error: float
    checks: list[str] = field(default_factory=list)


def check_out(opened: OpenedModel, out: Path) -> None:
    """Raises ArgumentError if ``out`` cannot be what the model's file becomes: of another kind. Raises
    LoadError for a folder that holds other weights."""
    came_from = opened.checkpoint
    folder = came_from is not None and came_from.path.is_dir()
    if folder and (out.suffix or out.is_file()):
        raise ArgumentError(f"{out}: the model came from a folder; --out names a folder")
    if came_from is not None and not folder and not same_kind(came_from.path, out):
        raise ArgumentError(
            f"{out}: the model came from a {came_from.path.suffix} file, and is written as one: end "
            f"--out with {came_from.path.suffix}"
        )
    if came_from is None and out.suffix.lower() not in ("", ".safetensors", *TORCH):
        raise ArgumentError(f"{out}: end --out with .safetensors or .pth, or name a folder")
    if not folder and out.suffix and out.is_dir():
        raise ArgumentError(f"{out}: a folder; --out names a file")
    if folder and came_from is not None:
        if out.resolve() == came_from.path.resolve():
            raise ArgumentError(f"{out}: the folder that the model came from; name another one")
        check_no_other_weights(came_from.path, out)


def write_repaired(
    opened: OpenedModel,
    repaired: nn.Module,
    out: Path,
    example: Any,
    patch: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Written:
    """Writes ``repaired`` to ``out`` as the file that ``opened`` came from, and a patch beside it if asked.

    The file is first written elsewhere on the same disk, read as its library reads it, and compared: every
    tensor with what it should be, to the bit, and its outputs for ``example`` with the repaired model's.

    Raises:
        PixelizeError: the file has no place for what changed, or reads back as another model.
        OSError: the disk refuses. What was there before is then untouched.
    """
    checkpoint = opened.checkpoint or checkpoint_of(opened.model, opened.name)
    values = changed_tensors(opened.model, repaired, checkpoint, opened.names, opened.used or None)
    out.parent.mkdir(parents=True, exist_ok=True)
    checks: list[str] = []
    error = 0.0
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
        trial = Path(staging, out.name)
        checkpoint.write(trial, values)
        if opened.reread is not None:
            again = opened.reread(trial).to(next(repaired.parameters()).device)
            error = _difference(repaired, again, example)  # some compute parameters when they first run
            _check_tensors(opened, again, repaired, values, checkpoint)
            told = "equal to" if error == 0 else f"within {error:.1g} of"
            checks.append(f"read back, its outputs are {told} the repaired model's")
        if out.suffix.lower() == ".onnx":
            difference = onnx_difference(trial, repaired, example)
            if difference is not None:
                error = max(error, difference)
                checks.append(f"in onnxruntime, within {difference:.1g} of the repaired model's")
        lowest = min((checkpoint.tensors[n].element_size() for n in values), default=4)
        if not error <= (CLOSE if lowest >= 4 else 0.1):
            raise PixelizeError(
                f"{out}: not written: what it would hold differs from the repaired model (relative error "
                f"{error:.2g})"
            )
        if error > ROUNDED:
            checks.append(
                "the file's type rounds that much: more of the pattern may be left in it than is told above"
            )
    files = checkpoint.write(out, values)
    if patch is not None:
        files.append(write_patch(patch, checkpoint, values, opened.used or None, about))
    return Written(files, list(values), len(checkpoint.tensors), error, checks)


def checkpoint_of(model: nn.Module, name: str) -> Checkpoint:
    """The state dict of a model that came from no file, as one; written by the ending of the file's name."""
    state = {k: v.detach().cpu() for k, v in model.state_dict().items() if isinstance(v, Tensor)}

    def replace(out: Path, values: Mapping[str, Tensor]) -> list[Path]:
        new = {**state, **values}
        if out.suffix.lower() == ".safetensors":
            alone = {k: v.clone(memory_format=torch.contiguous_format) for k, v in new.items()}
            return [write_bytes(out, save(alone, metadata={"format": "pt"}))]
        with replacing(out) as file:
            torch.save(new, file)
        return [out]

    return Checkpoint(Path(name), state, state, replace)


def onnx_difference(path: Path, model: nn.Module, example: Any) -> float | None:
    """Relative error of the graph in onnxruntime against ``model``, None where that is not installed."""
    if not isinstance(example, Tensor):
        return None
    outputs = run_onnx(path, example.detach().cpu())
    if outputs is None:
        return None
    with evaluation(model):
        return relative_error(run(model, example), _as_output([f.to(example.device) for f in outputs]))


def _as_output(outputs: list[Tensor]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs


def _difference(model: nn.Module, other: nn.Module, example: Any) -> float:
    with evaluation(model), evaluation(other):
        return relative_error(run(model, example), run(other, example))


def _check_tensors(
    opened: OpenedModel,
    again: nn.Module,
    repaired: nn.Module,
    values: Mapping[str, Tensor],
    checkpoint: Checkpoint,
) -> None:
    """Every parameter that the repair left alone is, read back, what it was."""
    before, after, read = (m.state_dict() for m in (opened.model, repaired, again))
    for key, value in before.items():
        if not isinstance(value, Tensor):
            continue
        if key not in read or (
            key in after and same_bits(after[key], value) and not same_bits(read[key], value)
        ):
            raise PixelizeError(
                f"{checkpoint.path}: {key} would not stay what it is, for the file's {', '.join(values)} are "
                "read as it too; nothing was written"
            )
