"""Recipe: DCGAN with different up-samplers, from scratch or from a trained generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pixelize.recipes.data.pictures import Pictures, load_pictures
from pixelize.recipes.models.arms import ANNEALED, arm_model, layer_and_width, recipe_arms
from pixelize.recipes.models.dcgan import Critic, Generator
from pixelize.recipes.recipe_settings import GanSettings
from pixelize.recipes.sampled import pattern, sampled, save_sheet, spectral_distance
from pixelize.recipes.training.compare import compare
from pixelize.recipes.training.loop import Trial
from pixelize.recipes.training.order import generator, noise
from pixelize.recipes.training.processes import adam, bare, descend, prepare, start
from pixelize.recipes.training.run_state import Metrics
from pixelize.recipes.weights import load_weights


def run(s: GanSettings) -> dict[str, Any]:
    """Trains every arm with every seed and reports. Returns what ``results.json`` holds.

    Raises ArgumentError for settings or data that mean nothing, before training.
    """
    accelerator = start(s)
    scratch = not s.weights
    arms = recipe_arms(s.arms, scratch)
    data, held = load_pictures(s.data, s.size, s.channels, limit=s.limit, download=s.download)

    def build(arm: str) -> Generator:
        return Generator(s.size, s.channels, s.latents, *layer_and_width(arm, s.width))

    base = None if scratch else load_weights(build("dcl-k4"), s.weights)
    latents = list(torch.randn(256, s.latents, generator=generator(9)).split(64))

    def make(arm: str, seed: int) -> tuple[nn.Module, Trial]:
        critic = Critic(s.size, s.channels, s.width)  # drawn first: the same for every arm
        model = arm_model(arm, build, base, latents)
        return model, make_trial(model, critic, s, seed, data, held, accelerator, scratch, arm == ANNEALED)

    def draw(folder: Path, models: dict[str, nn.Module]) -> dict[str, Path]:
        return {
            f"{arm}: samples": save_sheet(sampled(m, (s.latents,), 64), folder / f"samples-{arm}.png")
            for arm, m in models.items()
        }

    return compare(s, accelerator, f"gan: {s.data}", arms, make, draw)


def make_trial(
    model: nn.Module,
    critic: nn.Module,
    s: GanSettings,
    seed: int,
    data: Pictures,
    held: Pictures,
    accelerator: Accelerator,
    scratch: bool,
    anneal: bool,
) -> Trial:
    """The trial of one generator, with the non-saturating loss. The last weights are kept: no figure tells
    the best ones.
    """
    network, opponent = prepare(accelerator, s, model), prepare(accelerator, s, critic)
    own = adam(accelerator, s, model, scratch=scratch, betas=(0.5, 0.999))
    theirs = adam(accelerator, s, critic, scratch=True, betas=(0.5, 0.999))
    real_pictures = held.batch(0, s.samples)

    def update(batch: Tensor, number: int) -> dict[str, Tensor]:
        z = noise((len(batch), s.latents), seed, number, accelerator.process_index, accelerator.num_processes)
        fake = network(z.to(batch))
        critic_loss = F.softplus(-opponent(batch)).mean() + F.softplus(opponent(fake.detach())).mean()
        descend(accelerator, s, critic_loss, opponent, theirs)
        fixed = {
            name: p.detach() for name, p in critic.named_parameters()
        }  # the critic learns nothing from this
        loss = F.softplus(-functional_call(bare(accelerator, opponent), fixed, fake)).mean()
        descend(accelerator, s, loss, network, own)
        return {"generator": loss, "critic": critic_loss}

    def measure(judged: nn.Module) -> Metrics:
        pictures = sampled(judged, (s.latents,), s.samples)
        return {**pattern(pictures), "spectral distance dB": spectral_distance(pictures, real_pictures)}

    return Trial(
        {"generator": network, "critic": opponent},
        {"generator": own, "critic": theirs},
        data,
        update,
        measure,
        measure,
        "step",
        anneal,
    )
