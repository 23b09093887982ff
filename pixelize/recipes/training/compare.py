"""Every arm with every seed, from the same data in the same order, and the results side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

import pixelize
from pixelize.inheritance.record import converted_modules
from pixelize.recipes.models.arms import ADAPTER
from pixelize.recipes.training.loop import Trial, bars, fit
from pixelize.recipes.training.order import mixed
from pixelize.recipes.training.results import ArmResult, write_results
from pixelize.recipes.training.settings import Settings

Make = Callable[[str, int], tuple[nn.Module, Trial]]
"""``make(arm, seed)``: the bare model and its trial."""

Draw = Callable[[Path, dict[str, nn.Module]], dict[str, Path]]
"""``draw(folder, models of the last seed by arm)``: pictures for the report, by title."""

S = TypeVar("S", bound=Settings)


def train_base(
    model: nn.Module,
    steps: int,
    make_trial: Callable[[nn.Module, S], Trial],
    s: S,
    seed: int,
    accelerator: Accelerator,
) -> nn.Module:
    """The model from which converted arms start: ``model`` trained for ``steps`` (0: as it is), with its best
    weights.
    """
    if steps:
        settings = replace(s, steps=steps)
        trained = copy.deepcopy(model)  # what was prepared for training once must not be again, as an arm
        trial = make_trial(trained, settings)
        with bars(accelerator) as shown:
            fit(trial, settings, seed, Path(s.out) / f"base-seed{seed}", accelerator, shown)
        accelerator.free_memory()
        model.load_state_dict(trained.state_dict())
    return model


def compare(
    s: Settings,
    accelerator: Accelerator,
    title: str,
    arms: list[str],
    make: Make,
    draw: Draw | None = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains ``arms`` with all seeds under ``s.out/<arm>-seed<seed>``; finished runs there are taken as they
    are, others go on.

    A converted model is also saved by ``pixelize.save`` in ``.../model``. ``notes`` stand with the settings.

    Returns what ``results.json`` holds (on the main process).
    """
    results = {arm: ArmResult(arm) for arm in arms}
    folders = [Path(s.out) / f"{arm}-seed{seed}" for seed in s.seed_list() for arm in arms]
    models: dict[str, nn.Module] = {}
    with bars(accelerator) as shown:
        for seed in s.seed_list():
            for arm, result in results.items():
                folder = Path(s.out) / f"{arm}-seed{seed}"
                torch.manual_seed(mixed(seed, 7))
                model, trial = make(arm, seed)
                if arm == ADAPTER:  # batch norm's statistics are no dependency kernels
                    trial = replace(trial, training=False)
                new = sum(not (f / "checkpoint.safetensors").exists() for f in folders)
                at = fit(trial, s, seed, folder, accelerator, shown, max(1, new))
                if trial.anneal:
                    pixelize.harden(pixelize.set_input_gate(model, 0.0))
                if accelerator.is_main_process and converted_modules(model):
                    pixelize.save(model, folder / "model")
                result.facts["parameters"] = sum(p.numel() for p in model.parameters())
                result.facts["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
                result.seeds.append(seed)
                result.results.append({**(at.result or {}), "train minutes": at.seconds / 60})
                result.histories.append(at.history)
                models[arm] = model.cpu().eval()
                accelerator.free_memory()
    if not accelerator.is_main_process:
        return {}
    folder = Path(s.out)
    with torch.no_grad():
        pictures = draw(folder, models) if draw is not None else {}
    return write_results(folder, title, list(results.values()), {**asdict(s), **(notes or {})}, pictures)
