"""What a batch norm tells of the layer after it: the mean and deviation of its input, without any data."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pixelize.prior_fit import InputPrior

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)
NODES = 64


def input_prior(model: nn.Module, name: str, channels: int) -> InputPrior | None:
    """The statistics of the input of module ``name``, if a batch norm of ``channels`` channels is
    registered just before it.

    After training, a batch norm's output has mean ``bias`` and deviation ``|weight|`` in each channel;
    taken as normal, and sent through the activation registered in between, it gives the input's moments (by
    Gauss-Hermite quadrature). Where none is registered there, ReLU is taken for granted, since it has often
    no module of its own. It is a prior: where a guess is wrong, the fit is less good, no less valid.
    """
    leaves = [(n, m) for n, m in model.named_modules() if n == name or not any(m.children())]
    names = [n for n, _ in leaves]
    if name not in names:
        return None
    before = [m for _, m in leaves[: names.index(name)]]
    while before and isinstance(before[-1], nn.Dropout | nn.Dropout2d | nn.Identity | nn.Upsample):
        before.pop()
    activation: nn.Module = nn.ReLU()
    if before and isinstance(before[-1], ACTIVATIONS):
        activation = before.pop()
    norm = before[-1] if before else None
    if (
        not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        or not norm.affine
        or norm.num_features != channels
    ):
        return None
    return moments_after(activation, norm.bias.detach().double(), norm.weight.detach().double().abs())


def moments_after(activation: nn.Module, mean: torch.Tensor, deviation: torch.Tensor) -> InputPrior:
    """Mean and deviation of ``activation`` of normal variables: (C,) each, in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    at = torch.as_tensor(nodes, dtype=torch.float64, device=mean.device)
    share = torch.as_tensor(weights / weights.sum(), dtype=torch.float64, device=mean.device)
    with torch.no_grad():
        values = activation(mean[:, None] + deviation[:, None] * at)
    first = values @ share
    return InputPrior(first, ((values.square() @ share) - first.square()).clamp_min(0).sqrt())
