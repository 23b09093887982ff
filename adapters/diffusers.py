"""diffusers: autoencoders (a picture, a film or a waveform in and out, latents between) and U-Nets (latents,
a time step, perhaps a text)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixelize.adapters.adapter import Adapter, Pretrained, call, comes_from
from pixelize.adapters.guessed_inputs import first_that_runs, noise


def example_inputs(model: Any) -> Any:
    """A picture of 64 x 64 for an autoencoder, or some frames of a film, or a waveform; for a U-Net a sample
    of at most 64 x 64, a time step and what it is conditioned on."""
    config = model.config
    channels = config.get("in_channels") or config.get("encoder_in_channels") or 3
    if not isinstance(channels, int):
        channels = 3
    if hasattr(model, "decode") or hasattr(model, "decoder"):
        frames = {"num_frames": 1} if type(model).__name__ == "AutoencoderKLTemporalDecoder" else {}
        shapes: list[tuple[int, ...]] = [(1, channels, side, side) for side in (64, 128, 256)]
        films = {channels, config.get("out_channels") or channels}  # one that splits its input asks for more
        shapes += [(1, c, count, 64, 64) for c in sorted(films) for count in (9, 8)]
        shapes += [(1, config["audio_channels"], 8192)] if "audio_channels" in config else []
        return first_that_runs(model, [{"sample": noise(model, *shape), **frames} for shape in shapes])
    widths = config.get("block_out_channels")
    levels = len(widths) if isinstance(widths, tuple | list) else 3
    side = max(16, 2 ** (levels + 1))
    step = torch.tensor([3], device=noise(model, 1).device)
    text = config.get("cross_attention_dim") or 32
    width = text[0] if isinstance(text, tuple | list) else text
    states = {"encoder_hidden_states": noise(model, 1, 4, width)}
    time_ids = {"added_cond_kwargs": {"text_embeds": noise(model, 1, 32), "time_ids": noise(model, 1, 6)}}
    candidates: list[Any] = []
    for s in (side, 64):
        sample = {"sample": noise(model, 1, channels, s, s), "timestep": step}
        candidates += [
            sample,
            {**sample, **states},
            {**sample, "class_labels": step},
            {**sample, **states, **time_ids},
        ]
    if type(model).__name__ == "UVit2DModel":
        tokens = torch.zeros(1, 16, 16, dtype=torch.long, device=step.device)
        candidates = [
            {
                "input_ids": tokens,
                "encoder_hidden_states": noise(model, 1, 4, config["encoder_hidden_size"]),
                "pooled_text_emb": noise(model, 1, config["cond_embed_dim"]),
                "micro_conds": noise(model, 1, 5),
            }
        ]
    candidates += [{"x": noise(model, 1, channels, side, side)}, noise(model, 1, channels, 64, 64)]
    return first_that_runs(model, candidates)


def run(model: Any, inputs: Any) -> Any:
    """Runs ``model``; an autoencoder that is given latents alone is run through its decoder."""
    latent = model.config.get("latent_channels")
    channels = model.config.get("in_channels", 3)
    if isinstance(inputs, Tensor) and hasattr(model, "decode") and inputs.shape[1] == latent != channels:
        return model.decode(inputs)
    return call(model, inputs)


def save_config(model: Any, folder: str) -> None:
    """``config.json``."""
    model.save_config(folder)


def build(cls: Any, folder: str) -> nn.Module:
    """A model of ``cls`` from its ``config.json``."""
    return cls.from_config(cls.load_config(folder))


DIFFUSERS = Adapter(
    "diffusers",
    comes_from("diffusers"),
    example_inputs,
    run,
    Pretrained("diffusers.models.modeling_utils", "ModelMixin", save_config, build),
)
