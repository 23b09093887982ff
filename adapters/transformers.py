"""transformers: inputs by the names that a forward asks for, of the sizes that the configuration gives."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from pixelize.adapters.adapter import Adapter, Pretrained, comes_from
from pixelize.adapters.guessed_inputs import first_that_runs, noise, place_of


def example_inputs(model: Any) -> dict[str, Any]:
    """``pixel_values`` at the configured size (or 64 x 64), with ``input_ids`` and the like where the forward
    has them; of vocoders and audio codecs a spectrogram or a waveform."""
    asked = inspect.signature(model.forward).parameters
    if "pixel_values" not in asked and (sounds := _sounds(model, asked)):
        return first_that_runs(model, sounds)
    configs = [model.config, *(c for c in vars(model.config).values() if hasattr(c, "to_dict"))]
    channels = _first(configs, "num_channels", 3)
    own = _first(configs, "image_size", 64)
    own = tuple(own) if isinstance(own, list | tuple) else (own, own)
    device = place_of(model)["device"]
    extra: dict[str, Any] = {}
    if "input_ids" in asked:
        vocabulary = _first(configs, "vocab_size", 32)
        extra["input_ids"] = torch.arange(4, device=device)[None] % vocabulary
    if "prompt_depth" in asked:
        extra["prompt_depth"] = noise(model, 1, 1, 16, 16)
    if "dataset_index" in asked and _first(configs, "num_experts", 1) > 1:
        extra["dataset_index"] = torch.zeros(1, dtype=torch.long, device=device)
    if "task_inputs" in asked:
        extra["task_inputs"] = torch.ones(1, 77, dtype=torch.long, device=device)
    candidates = []
    for size in (own, (64, 64), (224, 224)):
        pictures = {"pixel_values": noise(model, 1, channels, *size)}
        candidates += [{**pictures, **extra}]
        if extra:
            candidates += [pictures]
        if "input_points" in asked:
            points = torch.full((1, 1, 1, 2), min(size) / 2, device=device, dtype=place_of(model)["dtype"])
            candidates += [{**pictures, "input_points": points}]
    return first_that_runs(model, candidates)


def _sounds(model: Any, asked: Collection[str]) -> list[dict[str, Any]]:
    """A waveform (1, 1, samples) of some thousands, or a spectrogram of a few frames with as many bands as
    the configuration names."""
    if "input_values" in asked:
        return [{"input_values": noise(model, 1, channels, 7680)} for channels in (1, 2)]
    name = next((name for name in ("spectrogram", "input_features") if name in asked), None)
    if name is None:
        return []
    config = model.config
    bands = [getattr(config, key, None) for key in ("model_in_dim", "num_mel_bins", "flow_size")]
    shapes = [shape for b in bands if isinstance(b, int) for shape in ((1, 13, b), (1, b, 13))]
    return [{name: noise(model, *shape)} for shape in shapes]


def _first(configs: list[Any], name: str, default: Any) -> Any:
    return next((v for c in configs if (v := getattr(c, name, None)) is not None), default)


def save_config(model: Any, folder: str) -> None:
    """``config.json``."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def build(cls: Any, folder: str) -> nn.Module:
    """A model of ``cls`` from its ``config.json``."""
    return cls(cls.config_class.from_pretrained(folder))


TRANSFORMERS = Adapter(
    "transformers",
    comes_from("transformers"),
    example_inputs,
    pretrained=Pretrained("transformers.modeling_utils", "PreTrainedModel", save_config, build),
)
