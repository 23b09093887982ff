"""The loop that all recipes share: rates, gate, running mean, evaluation, checkpoints, early stopping,
progress.

All randomness in a step follows from (seed, step, process), and the rest of the state is in the checkpoint: a
run that was killed at any moment and started again ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import pixelize
from pixelize.errors import PixelizeError
from pixelize.layers.gate import GateSchedule
from pixelize.recipes.training.checkpoint import check_room
from pixelize.recipes.training.order import StepBatches, mixed
from pixelize.recipes.training.processes import bare
from pixelize.recipes.training.run_state import Metrics, Progress, RunState, best_of, keep_best, mean_over
from pixelize.recipes.training.settings import Settings


@dataclass(frozen=True)
class Trial:
    """One arm with one seed.

    Args:
        networks: all that is trained, prepared by accelerate; the first is what is evaluated and kept.
        optimizers: their optimizers, prepared.
        data: what the batches are made of; asked for :data:`pixelize.recipes.training.order.Sample`.
        update: ``update(batch, number) -> losses to show``: forward, backward and optimizer steps for
            micro-batch ``number``.
        evaluate, test: metrics of a bare model on validation and on test data.
        watch: the metric that tells the best weights: the highest, or for ``-name`` the lowest; ``step`` for
            the last.
        anneal: whether the model goes from iPixelDCL to PixelDCL (:class:`pixelize.GateSchedule`).
        training: whether updates run in training mode; False keeps batch norm's statistics.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, Any]
    data: Any
    update: Callable[[Any, int], dict[str, Tensor]]
    evaluate: Callable[[nn.Module], Metrics]
    test: Callable[[nn.Module], Metrics]
    watch: str
    anneal: bool = False
    training: bool = True


def rate_at(step: int, warmup: int, steps: int) -> float:
    """The rate's share of its highest: rising linearly over ``warmup`` steps, then falling by a cosine, to 0
    at ``steps``.

    >>> [round(rate_at(t, 2, 10), 3) for t in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def bars(accelerator: Accelerator) -> Bars:
    """Progress bars with a column for metrics, on the main process alone."""
    return Bars(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=20)),
        BarColumn(10),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", table_column=Column(ratio=1)),
        expand=True,
        disable=not accelerator.is_main_process,
    )


def fit(
    trial: Trial, s: Settings, seed: int, folder: Path, accelerator: Accelerator, shown: Bars, runs: int = 1
) -> Progress:
    """Trains and tests one trial, going on from ``folder/checkpoint.safetensors`` if there is one.

    The first network ends with its best weights, which are in ``folder/best.safetensors`` too;
    ``folder/tensorboard`` has the curves. ``runs``: how many of this size the disk must have room for, this
    one among them.

    Raises ArgumentError if the checkpoint was made with other settings, PixelizeError if the disk is full
    (before training where that can be known; what was saved stays).
    """
    main, path = accelerator.is_main_process, folder / "checkpoint.safetensors"
    networks = {name: bare(accelerator, network) for name, network in trial.networks.items()}
    model = next(iter(networks.values()))
    schedule = GateSchedule(model, s.steps) if trial.anneal else None
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(s.ema), use_buffers=True) if s.ema else None
    )
    judged = model if average is None else average.module
    run = RunState(networks, trial.optimizers, average, accelerator.scaler, Progress(s.decisive()))
    if path.exists() and not s.fresh:
        run.restore(path)
    elif main:
        tensors = {f"{n}.{k}": t for n, m in networks.items() for k, t in m.state_dict().items()}
        check_room(folder, tensors, runs)
    at = run.progress
    if at.result is not None:
        best_of(folder, model)
        return at
    accelerator.wait_for_everyone()
    writer = _writer(folder, at.step) if main else None
    bar = shown.add_task(folder.name, total=s.steps, completed=at.step, shown="")

    batches = StepBatches(
        len(trial.data),
        s.batch // s.accumulate,
        at.step * s.accumulate,
        s.steps * s.accumulate,
        seed,  # type: ignore[arg-type]
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = iter(
        DataLoader(
            trial.data,
            batch_sampler=batches,
            num_workers=s.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
    )
    sums = {name: torch.tensor(value, device=accelerator.device) for name, value in at.sums.items()}
    _mode(networks, trial.training)
    began = time.perf_counter()
    while at.step < s.steps and not (s.patience and at.stale >= s.patience):
        for optimizer in trial.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * rate_at(at.step, s.warmup, s.steps)
        if schedule is not None:
            schedule.load_state_dict({"taken": at.step + 1})
            pixelize.set_input_gate(judged, schedule.gate)
        for micro in range(s.accumulate):
            torch.manual_seed(mixed(seed, 6, at.step, micro, accelerator.process_index))
            batch = _on(accelerator.device, next(loader), s.channels_last)
            with accelerator.accumulate(*trial.networks.values()):
                losses = trial.update(batch, at.step * s.accumulate + micro)
            for name, loss in losses.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), device=accelerator.device)) + loss.detach().float()
                )
            at.summed += 1
        if average is not None:
            average.update_parameters(model)
        at.step += 1
        if at.step % 10 == 0:
            shown.update(
                bar,
                completed=at.step,
                shown=_text({n: float(v) / at.summed for n, v in sums.items()}, at.history),
            )

        last = at.step == s.steps
        if at.step % s.eval_every == 0 or last:
            row = {n: v / at.summed for n, v in finite(mean_over(accelerator, sums), at.step).items()}
            at.seconds += time.perf_counter() - began
            with torch.no_grad():
                row |= trial.evaluate(judged.eval())
            at.history.append({"step": at.step, "seconds": at.seconds, **row})
            sums, at.summed = {}, 0
            shown.update(bar, completed=at.step, shown=_text(row, []))
            if main and not shown.console.is_terminal:  # a log file has lines where a terminal has bars
                shown.console.print(
                    f"{folder.name}, step {at.step} of {s.steps}: {_text(row, [])}", soft_wrap=True
                )
            if writer is not None:
                for name, value in row.items():
                    writer.add_scalar(name, value, at.step)
            if schedule is None or schedule.gate == 0.0:  # weights on the way to PixelDCL are no result
                value = at.history[-1][trial.watch.removeprefix("-")] * (
                    -1 if trial.watch.startswith("-") else 1
                )
                better = at.best is None or value > at.best
                at.stale = 0 if better else at.stale + 1
                if better:
                    at.best, at.best_step = value, at.step
                    if main:
                        keep_best(folder, judged, at.step)
            _mode(networks, trial.training)
            began = time.perf_counter()
        if at.step % s.save_every == 0 or last:
            at.seconds += time.perf_counter() - began
            finite(weights_sum(networks), at.step)
            at.sums = finite(mean_over(accelerator, sums), at.step)
            sums = {name: torch.tensor(value, device=accelerator.device) for name, value in at.sums.items()}
            if main:
                run.save(path)
            accelerator.wait_for_everyone()
            began = time.perf_counter()

    if schedule is not None:
        schedule.load_state_dict({"taken": s.steps})
    best_of(folder, model)
    with torch.no_grad():
        at.result = trial.test(model.eval())
    if main:
        run.save(path)
    accelerator.wait_for_everyone()
    if writer is not None:
        writer.close()
    shown.update(bar, completed=at.step, shown=_text(at.result, []))
    return at


def finite(sums: Metrics, step: int) -> Metrics:
    """The same, if all are finite. Raises PixelizeError if not: such weights must not replace good ones."""
    for name, value in sums.items():
        if not math.isfinite(value):
            raise PixelizeError(
                f"{name} is {value} by step {step}; lower --lr, or use --clip or another --precision. "
                "The last checkpoint is from before this"
            )
    return sums


def weights_sum(networks: dict[str, nn.Module]) -> Metrics:
    """The sum of each network's weights: finite if all are."""
    return {
        f"the {n}'s weights": sum(float(p.detach().sum()) for p in m.parameters())
        for n, m in networks.items()
    }


def _mode(networks: dict[str, nn.Module], training: bool) -> None:
    for network in networks.values():
        network.train(training)


def _on(device: torch.device, batch: Any, channels_last: bool) -> Any:
    if isinstance(batch, Tensor):
        batch = batch.to(device, non_blocking=True)
        return (
            batch.contiguous(memory_format=torch.channels_last)
            if channels_last and batch.ndim == 4
            else batch
        )
    return tuple(_on(device, part, channels_last) for part in batch)


def _text(row: Metrics, history: list[Metrics]) -> str:
    last = {k: v for k, v in history[-1].items() if k not in (*row, "step", "seconds")} if history else {}
    return "  ".join(f"{name} {value:.3g}" for name, value in {**row, **last}.items())


def _writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
