"""Running somebody's model in evaluation mode without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pixelize.rewrites.state.modules import devices_of, modules_of
from pixelize.rewrites.state.random_state import random_state_kept


@contextmanager
def evaluation(model: nn.Module, seed: int | None = 0) -> Iterator[None]:
    """Evaluation mode, no gradients, random numbers from ``seed`` (None: as they come): everything is put
    back afterwards.

    Modes are set as flags: ``model.eval()`` would call what a model's own ``train`` does (a LoRA layer that
    merges its weights). Nothing of the caller's, such as a data loader, is to be iterated in here: it would
    be given the same random numbers each time.
    """
    modes = [(module, module.training) for module in modules_of(model)]
    try:
        for module, _ in modes:
            module.training = False
        with random_state_kept(devices_of(model), seed), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
