"""Running somebody's model in evaluation mode without leaving a trace."""

from __future__ import annotations

import torch
from torch import nn

from pixelize.rewrites.state.all_or_nothing import undone_on_failure
from pixelize.rewrites.state.modules import devices_of, modules_of
from pixelize.rewrites.state.random_state import random_state_kept


class evaluation:
    """Evaluation mode, no gradients, random numbers from ``seed`` (None: as they come): everything is put
    back afterwards.

    Modes are set as flags: ``model.eval()`` would call what a model's own ``train`` does (a LoRA layer that
    merges its weights). Nothing of the caller's, such as a data loader, is to be iterated in here: it would
    be given the same random numbers each time.
    """

    def __init__(self, model: nn.Module, seed: int | None = 0) -> None:
        self._modules = list(modules_of(model))
        self._random = random_state_kept(devices_of(model), seed)

    def __enter__(self) -> None:
        self._modes = [module.training for module in self._modules]
        self._gradients = torch.is_grad_enabled()
        self._told = undone_on_failure(self._put_back)
        for module in self._modules:
            module.training = False
        torch.set_grad_enabled(False)
        self._random.__enter__()

    def __exit__(self, *_: object) -> None:
        self._random.__exit__()
        self._put_back()
        self._told()

    def _put_back(self) -> None:
        torch.set_grad_enabled(self._gradients)
        for module, mode in zip(self._modules, self._modes, strict=True):
            module.training = mode
