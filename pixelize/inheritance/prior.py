"""What a batch norm tells of the layer after it: the mean and deviation of its input, without any data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pixelize.inheritance.prior_fit import InputPrior
from pixelize.rewrites.state.precision import float64

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


def prior_before(modules: Sequence[nn.Module], place: int, channels: int) -> InputPrior | None:
    """The statistics of the input of ``modules[place]``, if a batch norm of ``channels`` channels is
    registered just before it. ``modules`` are all modules of a model, in the order of registration.

    After training, a batch norm's output has mean ``bias`` and deviation ``|weight|`` in each channel;
    taken as normal, and sent through the activation registered in between, it gives the input's moments (by
    Gauss-Hermite quadrature). Where none is registered there, ReLU is taken for granted, since it has often
    no module of its own. It is a prior: where a guess is wrong, the fit is less good, no less valid.
    """
    before = (modules[i] for i in range(place - 1, -1, -1) if not any(modules[i].children()))
    passed = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Upsample)
    last = next((m for m in before if not isinstance(m, passed)), None)
    activation, norm = (last, next(before, None)) if isinstance(last, ACTIVATIONS) else (nn.ReLU(), last)
    if not isinstance(norm, _BatchNorm) or not norm.affine or norm.num_features != channels:
        return None
    return moments_after(activation, float64(norm.bias.detach()), float64(norm.weight.detach()).abs())


def moments_after(activation: nn.Module, mean: torch.Tensor, deviation: torch.Tensor) -> InputPrior:
    """Mean and deviation of ``activation`` of normal variables: (C,) each, in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    at = torch.as_tensor(nodes, dtype=torch.float64, device=mean.device)
    share = torch.as_tensor(weights / weights.sum(), dtype=torch.float64, device=mean.device)
    with torch.no_grad():
        values = activation(mean[:, None] + deviation[:, None] * at)
    first = values @ share
    return InputPrior(first, ((values.square() @ share) - first.square()).clamp_min(0).sqrt())
