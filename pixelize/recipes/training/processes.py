"""Devices, processes, precision and optimizers of a run, by accelerate."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

import pixelize
from pixelize.errors import ArgumentError
from pixelize.recipes.training.joint_norm import join_norms
from pixelize.recipes.training.settings import Settings


def start(s: Settings) -> Accelerator:
    """The processes and devices of this run. Raises ArgumentError if the batch cannot be shared out among
    them, or the device does not know the precision.
    """
    s.check()
    if s.threads:
        torch.set_num_threads(s.threads)
    AcceleratorState._reset_state()  # or this process would be held to the precision of its first run
    try:
        accelerator = Accelerator(
            cpu=s.cpu,
            mixed_precision=s.precision,
            gradient_accumulation_steps=s.accumulate,
            dynamo_backend="inductor" if s.compile else None,
        )
    except ValueError as error:
        raise ArgumentError(f"--precision {s.precision}: {error}") from error
    if s.precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would leave it out
        raise ArgumentError("--precision fp16: needs a GPU; a CPU knows bf16")
    if s.batch % (accelerator.num_processes * s.accumulate):
        raise ArgumentError(
            f"--batch {s.batch} cannot be divided among {accelerator.num_processes} processes "
            f"and {s.accumulate} micro-batches"
        )
    return accelerator


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Leaves the parameters whose names match untrained. Raises ArgumentError for a pattern that matches
    none.
    """
    for pattern in patterns:
        matched = [p for name, p in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matched:
            raise ArgumentError(f"--freeze {pattern}: no parameter is called so")
        for parameter in matched:
            parameter.requires_grad_(False)


def prepare(accelerator: Accelerator, s: Settings, model: nn.Module) -> nn.Module:
    """The model on its device as every process trains it, with the options of ``s`` and batch norms over all
    processes.
    """
    freeze(model, s.frozen())
    if accelerator.num_processes > 1:
        model = join_norms(model, accelerator.device)
    if s.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return accelerator.prepare(model)


def adam(
    accelerator: Accelerator, s: Settings, model: nn.Module, *, scratch: bool = False, **options: Any
) -> Any:
    """AdamW over inherited and new weights, each at its own rate; one rate for all where all are new, or
    where the new ones are all that is trained.
    """
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    alone = all("dependency_kernels" in name for name in trained)
    rate = s.dependency_lr or (s.lr if scratch or alone else None)
    groups = pixelize.param_groups(model, s.lr, rate)
    for group in groups:
        group["highest"] = group["lr"]
    return accelerator.prepare(torch.optim.AdamW(groups, weight_decay=s.weight_decay, **options))


def bare(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The module itself, out of whatever compiling and distributing put around it. Its forward still runs in
    the precision of :func:`prepare`.
    """
    return accelerator.unwrap_model(model, keep_fp32_wrapper=True, keep_torch_compile=False)


def descend(
    accelerator: Accelerator, s: Settings, loss: torch.Tensor, model: nn.Module, optimizer: Any
) -> None:
    """Backward, clipping, optimizer step; on all but the last micro-batch of a step the gradient is only
    added up.
    """
    accelerator.backward(loss)
    if s.clip and accelerator.sync_gradients:
        accelerator.clip_grad_norm_(model.parameters(), s.clip)
    optimizer.step()
    optimizer.zero_grad()


def share(accelerator: Accelerator, n: int) -> range:
    """This process's part of ``n`` samples to evaluate."""
    return range(accelerator.process_index, n, accelerator.num_processes)
