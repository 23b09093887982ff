"""Optimizer groups: inherited and new weights at their own rates."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixelize.errors import ArgumentError


def param_groups(model: nn.Module, lr: float, dependency_lr: float | None = None) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: inherited weights at ``lr``, dependency kernels at ``dependency_lr``.

    Dependency kernels start at zero and are many; Adam moves each by its rate a step whatever the gradient,
    so they need a smaller one: ``lr / 20`` unless told. Frozen parameters are in no group; an empty group is
    left out.

    Raises ArgumentError if a rate is negative or nothing in the model can be trained.
    """
    rate = lr / 20 if dependency_lr is None else dependency_lr
    if lr < 0 or rate < 0:
        raise ArgumentError(f"learning rates must not be negative: lr={lr}, dependency_lr={dependency_lr}")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    new = [p for name, p in named if "dependency_kernels" in name]
    inherited = [p for name, p in named if "dependency_kernels" not in name]
    groups = [
        {"params": inherited, "lr": lr, "name": "inherited"},
        {"params": new, "lr": rate, "name": "dependency"},
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ArgumentError(f"this {type(model).__name__} has no trainable parameters; all are frozen")
    return groups
