"""Recipe: variational auto-encoder. The paper's from scratch with different up-samplers, or a trained one,
converted or not.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pixelize.recipes.data.pictures import Pictures, load_pictures
from pixelize.recipes.models.arms import ANNEALED, arm_model, layer_and_width, recipe_arms
from pixelize.recipes.models.vae import VAE, DiffusersVAE
from pixelize.recipes.recipe_settings import VaeSettings
from pixelize.recipes.sampled import pattern, sampled, save_sheet
from pixelize.recipes.training.compare import compare, train_base
from pixelize.recipes.training.loop import Trial
from pixelize.recipes.training.order import noise
from pixelize.recipes.training.processes import adam, descend, prepare, share, start
from pixelize.recipes.training.run_state import Metrics
from pixelize.recipes.weights import load_weights
from pixelize.sources.models import build_model


def run(s: VaeSettings) -> dict[str, Any]:
    """Trains every arm with every seed and reports. Returns what ``results.json`` holds.

    Raises ArgumentError for settings or data that mean nothing, before training.
    """
    accelerator = start(s)
    scratch = s.model == "vae" and not s.weights and not s.base_steps
    arms = recipe_arms(s.arms, scratch)
    data, held = load_pictures(s.data, s.size, s.channels, limit=s.limit, download=s.download)

    @cache
    def base(seed: int) -> Any:
        def trial(model: nn.Module, own: VaeSettings) -> Trial:
            return make_trial(model, own, seed, data, held, accelerator, True)

        return train_base(first_model(s), s.base_steps, trial, s, seed, accelerator)

    def make(arm: str, seed: int) -> tuple[nn.Module, Trial]:
        start = None if scratch else base(seed)
        inputs = [] if start is None else inputs_of(start, data)
        model = arm_model(
            arm,
            lambda arm: VAE(s.size, s.channels, s.latents, *layer_and_width(arm, s.width)),
            start,
            inputs,
        )
        return model, make_trial(model, s, seed, data, held, accelerator, scratch, arm == ANNEALED)

    def draw(folder: Path, models: dict[str, nn.Module]) -> dict[str, Path]:
        real = held.batch(0, 16)
        sheets = {}
        for arm, model in models.items():
            shown = torch.cat([real, reconstructed(model, real), decoded(model, 32)])
            sheets[f"{arm}: pictures, reconstructions, samples"] = save_sheet(
                shown, folder / f"samples-{arm}.png"
            )
        return sheets

    return compare(s, accelerator, f"vae: {s.model} on {s.data}", arms, make, draw)


def inputs_of(model: Any, data: Pictures) -> list[tuple[Tensor, Tensor]]:
    """Pictures and noise (none) by which a trained model is converted."""
    few = range(0, min(64, len(data)), 8)
    return [(data.batch(i, 8), torch.zeros(1, *model.latent_shape)) for i in few]


def first_model(s: VaeSettings) -> nn.Module:
    """The model by its name, with ``--weights``."""
    if s.model == "vae":
        model: nn.Module = VAE(s.size, s.channels, s.latents, "dcl-k4", s.width)
    else:
        model = DiffusersVAE(build_model(s.model), s.size)
    if s.weights:
        load_weights(getattr(model, "model", model), s.weights)
    return model


def make_trial(
    model: Any,
    s: VaeSettings,
    seed: int,
    data: Pictures,
    held: Pictures,
    accelerator: Accelerator,
    scratch: bool,
    anneal: bool = False,
) -> Trial:
    """The trial of one model: squared error and ``kl`` times the Kullback-Leibler term, both summed over a
    picture, by its values' number.
    """
    network = prepare(accelerator, s, model)
    optimizer = adam(accelerator, s, model, scratch=scratch)

    def update(batch: Tensor, number: int) -> dict[str, Tensor]:
        shape = (len(batch), *model.latent_shape)
        z = noise(shape, seed, number, accelerator.process_index, accelerator.num_processes).to(batch)
        again, mean, log_variance = network(batch, z)
        error = (again - batch).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / batch.numel()
        descend(accelerator, s, error + s.kl * divergence, network, optimizer)
        return {"error": error, "kl": divergence}

    def evaluate(judged: nn.Module) -> Metrics:
        return {f"val {name}": value for name, value in test(judged).items()}

    def test(judged: nn.Module) -> Metrics:
        few = reconstructed(judged, held.batch(0, s.samples).to(accelerator.device)).cpu()
        return {
            **measure(judged, held, accelerator),
            **pattern(few, "reconstructions "),
            **pattern(decoded(judged, s.samples), "samples "),
        }

    return Trial({"model": network}, {"adam": optimizer}, data, update, evaluate, test, "val PSNR", anneal)


def measure(model: nn.Module, held: Pictures, accelerator: Accelerator, batch: int = 64) -> Metrics:
    """PSNR (dB) and SSIM of reconstructions through the means, over all processes together."""
    psnr = PeakSignalNoiseRatio(data_range=(-1.0, 1.0)).to(accelerator.device)
    ssim = StructuralSimilarityIndexMeasure(data_range=(-1.0, 1.0)).to(accelerator.device)
    own = share(accelerator, len(held))
    for i in range(0, len(own), batch):
        real = torch.stack([held[j] for j in own[i : i + batch]]).to(accelerator.device)
        again = reconstructed(model, real)
        psnr.update(again, real)
        ssim.update(again, real)
    return {"PSNR": psnr.compute().item(), "SSIM": ssim.compute().item()}  # type: ignore[union-attr]


def reconstructed(model: Any, pictures: Tensor) -> Tensor:
    """Pictures through the latents' means."""
    return model.decode(model.encode(pictures)[0]).float()


def decoded(model: Any, count: int) -> Tensor:
    """``count`` pictures of always the same latents, on the CPU."""
    return sampled(model, model.latent_shape, count, model.decode)
