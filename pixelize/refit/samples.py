"""What a repair takes of somebody's data: single samples, cut to a workable size, some of them held back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pixelize.errors import ArgumentError
from pixelize.refit.calls import named_parameters
from pixelize.refit.cutting import cutting_of, enlarged, shifted
from pixelize.refit.limits import RepairLimits
from pixelize.refit.runner import NoPictureError, Runner, look
from pixelize.refit.sample import Sample, tensors_in
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.batches import batches, samples_of, selected


@dataclass
class Samples:
    """Samples to fit to and samples to judge by, with what is to be said about them. Every other one to fit
    to is an enlarged part where there are such; ``enlarged``: parts of those held back."""

    fit: list[Sample]
    held: list[Sample]
    enlarged: list[Sample]
    pictures: int
    notes: list[str] = field(default_factory=list)
    few: bool = False


def take(
    model: nn.Module, data: Iterable[Any] | Tensor, limits: RepairLimits
) -> tuple[list[Sample], list[str]]:
    """The first samples of the data, as the model takes them, and what was left out.

    The data is read once, outside of evaluation mode, as far as is needed.
    """
    taken: list[Sample] = []
    size, notes = 0, []
    feed: Callable[[Any], Any] | None = None
    for batch in batches(data):
        batch = tree_map(lambda v: torch.as_tensor(v) if isinstance(v, np.ndarray) else v, batch)
        if feed is None:
            feed = _feeding(model, batch)
        batch = feed(batch)
        count = samples_of(batch)
        for n in range(count):
            sample = selected(batch, slice(n, n + 1), count)
            taken.append(sample)
            size += sum(t.nbytes for t in tensors_in(sample))
            if len(taken) >= limits.samples or size >= limits.input_bytes:
                break
        if len(taken) >= limits.samples or size >= limits.input_bytes:
            notes.append(f"only the first {len(taken)} samples of the data were read")
            break
    if not taken:
        raise ArgumentError("repair needs data: the iterable given was empty (an iterator already read?)")
    return taken, notes


def split(runner: Runner, taken: list[Sample], limits: RepairLimits, period: int) -> Samples:
    """Pieces of the samples, some held back: whole samples where there are several, else a region of one."""
    cut = cutting_of(runner, taken[0], limits, period)
    few = len(taken) < 4
    notes: list[str] = []
    if few and cut is None and len(taken) == 1:
        fit, held = taken, taken
        notes.append("one sample that cannot be cut: nothing is held back, the levels are those fitted")
    elif few and cut is not None:
        fit = [piece for n, s in enumerate(taken) for piece in cut.pieces(s, n, (0.0, 0.72))]
        held = [piece for n, s in enumerate(taken) for piece in cut.pieces(s, n, (0.72, 1.0))]
    else:
        # whole runs of samples: neighbours in a film or a list are alike
        count = max(1, min(limits.held, len(taken) // 4))
        run_length = -(-count // 4)
        at = {
            n
            for k in range(4)
            for n in range((k + 1) * len(taken) // 4 - run_length, (k + 1) * len(taken) // 4)
        }
        at = set(sorted(at)[:count]) if len(at) > count else at
        pieces = [cut.pieces(s, n) if cut else [s] for n, s in enumerate(taken)]
        held = [piece for n in sorted(at) for piece in pieces[n]]
        fit = [piece for n in range(len(taken)) if n not in at for piece in pieces[n]]
    random.Random(0).shuffle(fit)
    random.Random(1).shuffle(held)
    fit, held = fit[: limits.samples], held[: limits.held]
    fit = fit + shifted(fit, max(0, limits.portion // 2 - len(fit)), period, runner.axes)
    if parts := enlarged(fit, runner.axes):
        fit = [s for pair in zip(fit, parts, strict=True) for s in pair]
        held = held[: limits.held // 2]
    return Samples(fit, held, enlarged(held, runner.axes), len(taken), notes, len(taken) < limits.few)


def _feeding(model: nn.Module, batch: Any) -> Callable[[Any], Any]:
    """What of an element of the data the model takes: all of it, its first part (of a picture and its label),
    or a picture that lacks the batch axis."""

    def as_given(given: Any) -> Any:
        return given

    def first(given: Any) -> Any:
        return next(iter(given.values())) if isinstance(given, Mapping) else given[0]

    def batch_of_one(given: Any) -> Any:
        return given[None]

    def first_of_one(given: Any) -> Any:
        return first(given)[None]

    ways: list[Callable[[Any], Any]] = [as_given]
    if isinstance(batch, tuple | list | Mapping) and len(batch) > 1:
        ways += [first, first_of_one]
    if isinstance(batch, Tensor) and batch.dim() in (2, 3):
        ways = [batch_of_one, as_given] if batch.dim() == 3 and _image_like(model, batch) else ways
    if isinstance(batch, list) and len(batch) == 1:
        ways.append(first)
    trouble: Exception | None = None
    with Change(model) as transaction, evaluation(model):
        for way in ways:
            try:
                fed = way(batch)
                found = look(model, selected(fed, slice(0, 1), samples_of(fed))).picture
            except Exception as error:
                trouble = trouble or error
            else:
                if found is not None:
                    transaction.undo()
                    return way
        transaction.undo()
    if trouble is not None:
        text = " ".join(str(trouble).split())[:300]
        raise ArgumentError(
            f"the model does not run on the data's first element ({type(trouble).__name__}: {text})"
            f"{_hint(batch)}"
        ) from trouble
    raise NoPictureError("the model's output holds no picture")


def _hint(batch: Any) -> str:
    """What may be wrong with an element of the data that a model does not run on."""
    leaves = tree_leaves(batch)
    if not any(isinstance(v, Tensor) for v in leaves):
        kinds = ", ".join(dict.fromkeys(type(v).__name__ for v in leaves))
        return (
            f": it holds no tensor ({kinds}); make tensors of pictures, with values as the model takes them, "
            "or leave reading files to the command line: pixelize repair MODEL --data PICTURES"
        )
    if any(isinstance(v, Tensor) and v.dtype == torch.uint8 for v in leaves):
        return ": its numbers are whole (uint8); models take floating-point ones, x / 255 for many"
    return ""


def _image_like(model: nn.Module, given: Tensor) -> bool:
    """Whether (C, H, W) is one picture: its first axis is what a convolution of the model reads."""

    shapes = [p.shape for p in named_parameters(model).values() if p.dim() == 4]
    return any(given.shape[0] in shape[:2] for shape in shapes[:1])
