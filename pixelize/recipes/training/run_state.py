"""The state of one run: what is in memory, into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pixelize.errors import ArgumentError, LoadError
from pixelize.recipes.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    prefixed,
    restore_optimizer,
    save_checkpoint,
    under,
)

Metrics = dict[str, float]


@dataclass
class Progress:
    """How far a run is: plain data.

    ``seconds`` of training alone; ``history``: one row for each evaluation; ``best`` value of the watched
    metric, at ``best_step``, and ``stale`` evaluations since; ``sums`` of the losses since the last
    evaluation; ``result``: the metrics of the best weights on test data.
    """

    settings: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    history: list[Metrics] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    sums: Metrics = field(default_factory=dict)
    summed: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    result: Metrics | None = None


@dataclass
class RunState:
    """All that a run changes. ``networks`` are bare modules; ``average`` their first one's running mean, if
    there is one.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, Any]
    average: nn.Module | None
    scaler: Any
    progress: Progress

    def save(self, path: Path) -> None:
        """Replaces the checkpoint. Raises PixelizeError if the disk refuses."""
        tensors: dict[str, torch.Tensor] = {}
        for name, network in self.networks.items():
            tensors |= prefixed(f"network/{name}", network.state_dict())
        for name, optimizer in self.optimizers.items():
            tensors |= prefixed(f"optimizer/{name}", optimizer_tensors(optimizer))
        if self.average is not None:
            tensors |= prefixed("average", self.average.state_dict())
        if self.scaler is not None:
            self.progress.scaler = self.scaler.state_dict()
        save_checkpoint(path, tensors, vars(self.progress))

    def restore(self, path: Path) -> None:
        """Takes up a checkpoint. Raises ArgumentError if it was made with other settings, LoadError if it is
        none of this run's.
        """
        tensors, state = load_checkpoint(path)
        if state.keys() != {f.name for f in fields(Progress)}:
            raise LoadError(f"{path}: not a checkpoint of this version's recipes; --fresh begins anew")
        check_same_settings(path, state["settings"], self.progress.settings)
        try:
            for name, network in self.networks.items():
                network.load_state_dict(under(f"network/{name}", tensors))
            for name, optimizer in self.optimizers.items():
                restore_optimizer(optimizer, under(f"optimizer/{name}", tensors))
            if self.average is not None:
                self.average.load_state_dict(under("average", tensors))
        except (RuntimeError, KeyError, ValueError) as error:
            raise LoadError(
                f"{path}: its weights do not fit this model ({error}); --fresh begins anew"
            ) from error
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state)


def check_same_settings(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ArgumentError, naming what differs."""
    changed = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    if changed:
        told = ", ".join(f"{k} was {then.get(k)!r} and is {now.get(k)!r}" for k in changed)
        raise ArgumentError(
            f"{path}: made with other settings ({told}); go on with those, use another --out, or --fresh"
        )


def best_of(folder: Path, model: nn.Module) -> None:
    """Loads the weights that :func:`keep_best` wrote into ``model``."""
    model.load_state_dict(load_checkpoint(folder / "best.safetensors")[0])


def keep_best(folder: Path, model: nn.Module, step: int) -> None:
    """Writes the model's weights. Raises PixelizeError if the disk refuses."""
    save_checkpoint(folder / "best.safetensors", dict(model.state_dict()), {"step": step})


def mean_over(accelerator: Any, values: Metrics | dict[str, torch.Tensor]) -> Metrics:
    """Each value's mean over all processes."""
    return {
        name: float(
            accelerator.reduce(torch.as_tensor(value, dtype=torch.float32, device=accelerator.device), "mean")
        )
        for name, value in values.items()
    }
