"""Inputs for a model of which nothing is known but itself, and what a given input is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixelize.adapters import call, find
from pixelize.errors import ArgumentError
from pixelize.rewrites.seeing.apart import copied_inputs
from pixelize.rewrites.state.evaluation import evaluation

BATCH = 8


def default_inputs(model: nn.Module, count: int = 64, seed: int = 0) -> tuple[list[Any], str]:
    """Normally distributed inputs of the shape that suits the model's library, and what they are in words.

    Where a model takes one tensor, ``count`` samples; else its adapter's one example.

    Raises ArgumentError if no input is known for the model.
    """
    adapter = find(model)
    try:
        example = adapter.example_inputs(model) if adapter else None
    except ValueError as error:
        raise ArgumentError(
            f"{error}; on the command line, --data with a shape such as 1x3x64x64, a picture, a sound, a "
            "folder or an .npy file"
        ) from None
    if not isinstance(example, Tensor) or example.device.type == "meta":
        return [example], "one example made for its library"
    generator = torch.Generator().manual_seed(seed)
    shape = "x".join(str(n) for n in example.shape[1:])
    samples = torch.randn((count, *example.shape[1:]), generator=generator).to(example)
    return list(samples.split(BATCH)), f"{count} inputs of {shape} random numbers (seed {seed})"


def input_channels(model: nn.Module) -> int | None:
    """How many channels the model's first convolution of pictures takes, or else of waveforms or volumes;
    None if it has none."""
    for kind in (nn.Conv2d, nn.Conv1d, nn.Conv3d):
        first = next((m for m in model.modules() if isinstance(m, kind)), None)
        if first is not None:
            return first.in_channels
    return None


def one_sample(inputs: Any) -> Any:
    """The first sample of a batch that is one tensor, other inputs as they are."""
    return inputs[:1] if isinstance(inputs, Tensor) and inputs.dim() > 1 else inputs


def whole_inputs(model: nn.Module, batch: Any) -> Any:
    """``batch``, for what looks at the whole model. Where it runs a part alone (latents an autoencoder's
    decoder), what the library's adapter knows to run all of it.
    """
    adapter = find(model)
    if adapter is None or adapter.run is call:
        return batch
    with evaluation(model):
        try:
            call(model, copied_inputs(batch))
        except Exception:  # a stranger's forward may raise anything
            return adapter.example_inputs(model)
    return batch


def shape_of(inputs: Any) -> str:
    """The shapes in one input, in words: ``1x3x64x64``."""
    if isinstance(inputs, Tensor):
        return "x".join(str(n) for n in inputs.shape) or "a number"
    if isinstance(inputs, dict):
        return ", ".join(f"{k} {shape_of(v)}" for k, v in inputs.items())
    if isinstance(inputs, tuple | list):
        return ", ".join(shape_of(v) for v in inputs)
    return type(inputs).__name__
