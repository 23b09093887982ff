"""Recipe: repair a trained generator without labels: the original is the teacher, the artifact the loss."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import checkerboard, frequency_name
from pixelize.measure.decibels import psnr
from pixelize.pages.page import write_report
from pixelize.recipes.artifact_loss import ArtifactLoss, Level, low_pass, natural_level, without_artifact
from pixelize.recipes.data.pictures import load_pictures
from pixelize.recipes.models.arms import CONVERTED_ARMS, convert_arm, split_arms
from pixelize.recipes.recipe_settings import RepairSettings
from pixelize.recipes.sampled import save_sheet
from pixelize.recipes.training.checkpoint import load_checkpoint, save_checkpoint
from pixelize.recipes.training.compare import compare
from pixelize.recipes.training.loop import Trial
from pixelize.recipes.training.order import Sample, generator
from pixelize.recipes.training.processes import adam, descend, prepare, start
from pixelize.recipes.training.run_state import Metrics
from pixelize.recipes.weights import load_weights
from pixelize.refit.repair import repair as repair_without_training
from pixelize.running.outputs import tensors
from pixelize.sources.models import build_model

REPAIRED = "-repaired"
"""After an arm's name: it starts from what :func:`pixelize.repair` makes of the model, not from the model."""

ARMS = tuple(arm + start for arm in CONVERTED_ARMS for start in ("", REPAIRED))
Held = tuple[Tensor, Tensor]
"""Inputs that are not trained on, and the original's pictures of them."""

_WHOLE = 0.05  # share of the plain squared error in the fidelity: nothing may drift unseen within the notches


@dataclass(frozen=True)
class Latents(Dataset):
    """Standard normal inputs of one shape, each a function of its index; the last ones are kept for
    measuring.
    """

    shape: tuple[int, ...]
    count: int = 2**20
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, sample: Sample | int) -> Tensor:
        index = sample[1] if isinstance(sample, tuple) else sample
        return torch.randn(self.shape, generator=generator(11, self.first + index))


def run(s: RepairSettings) -> dict[str, Any]:
    """Repairs the model as every arm with every seed and reports. Returns what ``results.json`` holds.

    Raises ArgumentError for settings or data that mean nothing, before training.
    """
    accelerator = start(s)
    arms = split_arms(s.arms, ARMS)
    teacher, data, held = load_teacher(s)
    teacher = teacher.to(accelerator.device).eval().requires_grad_(False)
    count = min(s.samples, len(held) // 2)
    if count < 1:
        raise ArgumentError(
            f"--data {s.inputs}: of these {len(held)} is held back, and two are needed, one to choose the "
            "weights by and one to measure on; give at least twenty pictures"
        )
    chosen, fresh = torch.stack([held[i] for i in range(2 * count)]).chunk(2)
    try:
        original = pictures_of(teacher, fresh)
    except RuntimeError as error:
        raise ArgumentError(f"--data {s.inputs}: {s.model} does not take them ({error})") from error
    validation, test = (chosen, pictures_of(teacher, chosen)), (fresh, original)
    real = None
    if s.data:
        kind = 1 if original.shape[1] == 1 else 3
        real = load_pictures(s.data, original.shape[-1], kind)[1].batch(0, 1024)
    natural = natural_level(real, s.period)
    inputs = torch.stack([data[i] for i in range(min(1024, len(data)))]).split(64)
    for arm in dict.fromkeys(arm.removesuffix(REPAIRED) for arm in arms):  # refused now, if at all
        convert_arm(arm, copy.deepcopy(teacher).cpu(), inputs[0][:2], include=s.include)

    repaired = None
    if any(arm.endswith(REPAIRED) for arm in arms):
        repaired = repaired_once(s, copy.deepcopy(teacher).cpu(), inputs, accelerator.is_main_process)

    def make(arm: str, seed: int) -> tuple[nn.Module, Trial]:
        base = copy.deepcopy(repaired if repaired is not None and arm.endswith(REPAIRED) else teacher)
        base = base.cpu().eval().requires_grad_(True)
        model = convert_arm(arm.removesuffix(REPAIRED), base, inputs[0][:2], inputs, s.include)
        return model, make_trial(model, s, teacher, data, natural, validation, test, accelerator)

    def draw(folder: Path, models: dict[str, nn.Module]) -> dict[str, Path]:
        shown = {"as it came": teacher.cpu(), **models}
        write_report(
            shown,
            folder / "pictures.html",
            inputs=fresh[:64],
            title=f"repair of {s.model}",
            period=s.period,
            natural=None if real is None else [real],
        )
        scale = original.abs().max()
        sheets = {name: pictures_of(model, fresh[:64]) / scale for name, model in shown.items()}
        return {n: save_sheet(x, folder / f"samples-{n.replace(' ', '-')}.png") for n, x in sheets.items()}

    before = judge(original, original, natural, s.period)
    notes = {f"as it came: {name}": round(value, 2) for name, value in before.items() if "PSNR" not in name}
    if repaired is not None:
        levels = judge(pictures_of(repaired, fresh), original, natural, s.period)
        notes |= {f"repaired: {name}": round(value, 2) for name, value in levels.items()}
    notes |= {f"natural: {form} {frequency_name(f)}": round(v, 2) for (form, f), v in natural.items()}
    return compare(s, accelerator, f"repair of {s.model}", arms, make, draw, notes)


def repaired_once(s: RepairSettings, model: nn.Module, inputs: Sequence[Tensor], main: bool) -> nn.Module:
    """What :func:`pixelize.repair` makes of ``model`` on ``inputs``: done once for a folder and kept in its
    ``repaired.safetensors``, so that a run which goes on starts from the same.
    """
    path = Path(s.out) / "repaired.safetensors"
    of = {name: getattr(s, name) for name in ("model", "weights", "inputs", "size", "channels", "limit")}
    if path.exists() and not s.fresh:
        tensors, state = load_checkpoint(path)
        if state == of:
            model.load_state_dict(tensors)
            return model
    repaired = repair_without_training(model, inputs)
    if main:
        save_checkpoint(path, repaired.state_dict(), of)
    return repaired


def load_teacher(s: RepairSettings) -> tuple[nn.Module, Any, Any]:
    """The model to repair, what to feed it, and what to measure it on. Raises ArgumentError if one of them is
    not to be had.
    """
    shape = s.inputs
    if s.model == "demo":
        from pixelize.demo.generator import LATENT_CHANNELS, load_demo_model

        model: nn.Module = load_demo_model()
        shape = shape or str(LATENT_CHANNELS)
    elif s.model == "gan-face-generate":
        model = load_gan_face_generate()
        shape = shape or "100x1x1"
    else:
        model = build_model(s.model)
    if s.weights:
        load_weights(model, s.weights)
    if not shape:
        raise ArgumentError(
            "--data: say what the model takes: a shape such as 100x1x1, or a folder or zip of pictures"
        )
    if os.path.exists(shape):
        return model, *load_pictures(shape, s.size, s.channels, limit=s.limit)
    try:
        sizes = tuple(int(n) for n in shape.split("x"))
    except ValueError:
        raise ArgumentError(
            f"--data {shape}: neither a shape such as 100x1x1 nor a folder or zip that exists"
        ) from None
    return model, Latents(sizes), Latents(sizes, first=2**21)


def load_gan_face_generate() -> nn.Module:
    """The generator of the PyPI package ``gan-face-generate`` (MIT): a DCGAN of 64x64 faces. Raises
    ArgumentError if it is not there.
    """
    try:
        import gan_face_generate
        from gan_face_generate.models import Generator
    except ImportError as error:
        raise ArgumentError(f"--model gan-face-generate: {error}; pip install gan-face-generate") from error
    stored = torch.load(Path(gan_face_generate.__file__).parent / "weights.tar", "cpu", weights_only=True)
    model = Generator(1, 3, 100, 64)
    model.load_state_dict(stored["netG_state_dict"])
    return model


def make_trial(
    model: nn.Module,
    s: RepairSettings,
    teacher: nn.Module,
    data: Dataset,
    natural: Level,
    validation: Held,
    test: Held,
    accelerator: Accelerator,
) -> Trial:
    """The trial of one arm: ``fidelity`` times the squared error outside the artifact's bands, and the
    artifact's distance from natural. Its weights are chosen on ``validation`` and judged on ``test``.
    """
    network = prepare(accelerator, s, model)
    optimizer = adam(accelerator, s, model)
    artifact_of = ArtifactLoss(natural, s.period)

    def update(batch: Tensor, number: int) -> dict[str, Tensor]:
        pictures = tensors(network(batch))[0]
        with torch.no_grad():
            wanted = tensors(teacher(batch))[0]
        change = pictures - wanted
        fidelity = without_artifact(change, s.period).square().mean() + _WHOLE * change.square().mean()
        artifact = artifact_of(pictures)
        descend(accelerator, s, s.fidelity * fidelity + artifact, network, optimizer)
        return {"fidelity": fidelity, "artifact": artifact}

    def measure(held: Held, judged: nn.Module) -> Metrics:
        return judge(pictures_of(judged, held[0]), held[1], natural, s.period)

    return Trial(
        {"model": network},
        {"adam": optimizer},
        data,
        update,
        partial(measure, validation),
        partial(measure, test),
        "-off natural dB",
        training=False,
    )


def judge(pictures: Tensor, original: Tensor, natural: Level, period: int = 2) -> Metrics:
    """All figures of :func:`pixelize.checkerboard`, the farthest of them from natural, and PSNR (dB) to the
    original: whole and low-passed.

    The peak of the PSNR is the range of the original's values.
    """
    measured = checkerboard(pictures, period)
    level = {(form, f): measured[form][f] for form, f in natural}
    named = {f"{form} {frequency_name(f)}": value for (form, f), value in level.items()}
    peak = float(original.max() - original.min())
    off = max(abs(level[key] - natural[key]) for key in natural)
    low = psnr([low_pass(original)], [low_pass(pictures)], peak)
    return {**named, "off natural dB": off, "PSNR": psnr([original], [pictures]), "low-passed PSNR": low}


def pictures_of(model: nn.Module, inputs: Tensor, batch: int = 64) -> Tensor:
    """The model's pictures ``(N, C, H, W)`` of ``inputs``, on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([tensors(model(part.to(device)))[0].float().cpu() for part in inputs.split(batch)])
