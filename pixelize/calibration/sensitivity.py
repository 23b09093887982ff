"""How much the channels of a layer's output matter to what the model makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.errors import PixelizeWarning
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.precision import float64
from pixelize.running.outputs import tensors
from pixelize.running.pictures import run

DAMPING = 0.1
"""Added to the diagonal, as a share of its mean: channels that hardly matter to first order still count."""


def sensitivities(
    model: nn.Module, layers: Iterable[nn.Module], data: Iterable[Any]
) -> dict[nn.Module, Tensor]:
    """For each layer G (C, C): e^T G e is what a small error e (C) of one pixel of the layer's output costs
    in the squared error of the model's outputs, in the mean over pixels and inputs; its mean diagonal is 1.
    (The factor of the outputs in K-FAC, Martens and Grosse 2015, eq. 1, for the squared error.)

    G is E[g g^T], with g the gradient of the outputs projected on random directions, each output in units
    of its root mean square; damped. A layer of which no output depends in a way that has a gradient is
    missing. Where gradients cannot be computed (memory, an operation without a backward pass) all are, with a
    PixelizeWarning.
    """
    moments: dict[nn.Module, Tensor] = {}
    wanted = list(layers)
    for seed, batch in enumerate(data):
        try:
            gradients = _gradients(model, wanted, batch, seed)
        except RuntimeError as error:
            warnings.warn(
                f"errors of all channels count alike: no gradient of the outputs of this "
                f"{type(model).__name__} could be computed ({error})",
                PixelizeWarning,
                stacklevel=4,
            )
            return {}
        for layer, gradient in gradients:
            batch = gradient.dim() == len(layer.stride) + 2  # type: ignore[arg-type]
            rows = (gradient if batch else gradient[None]).transpose(0, 1).flatten(1)
            moments[layer] = moments.get(layer, 0.0) + float64(rows @ rows.T)
    costs = {}
    for layer, moment in moments.items():
        scale = moment.diagonal().mean()
        if torch.isfinite(moment).all() and scale > 0:
            costs[layer] = moment / scale / (1 + DAMPING)
            costs[layer].diagonal().add_(DAMPING / (1 + DAMPING))
    return costs


def _gradients(
    model: nn.Module, layers: list[nn.Module], batch: Any, seed: int
) -> list[tuple[nn.Module, Tensor]]:
    """Of the model's outputs on ``batch``, projected on random directions, with respect to those of the
    layers, for each of their calls.
    """
    seen: list[tuple[nn.Module, Tensor]] = []

    def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append((layer, output.requires_grad_(True)))
        return output.clone()  # what follows may work in place

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(hook).remove)
        for p in model.parameters():
            if p.requires_grad:
                stack.callback(p.requires_grad_(False).requires_grad_, True)
        stack.enter_context(evaluation(model, seed))
        stack.enter_context(torch.enable_grad())
        projected = torch.zeros((), device="cpu")
        for output in tensors(run(model, batch)):
            if output.requires_grad:
                size = output.detach().float().square().mean().sqrt().clamp_min(1e-12)
                projected = projected + ((output * torch.randn_like(output)).sum() / size).cpu()
        if not projected.requires_grad:
            return []
        gradients = torch.autograd.grad(projected, [output for _, output in seen], allow_unused=True)
    return [
        (layer, g.float() if g.dtype.itemsize < 4 else g)
        for (layer, _), g in zip(seen, gradients, strict=True)
        if g is not None
    ]
