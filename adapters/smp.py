"""segmentation_models_pytorch: a picture in, a mask out; models inherit huggingface_hub's mixin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pixelize.adapters.adapter import Adapter, Pretrained, comes_from
from pixelize.adapters.guessed_inputs import first_that_runs, noise


def example_inputs(model: nn.Module) -> Tensor:
    """(1, C, 64, 64), or the smallest larger square that this architecture takes (PAN 128, a ViT its own)."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    channels = first.in_channels
    own = next((m.img_size for m in model.modules() if hasattr(m, "img_size") and hasattr(m, "proj")), None)
    sides: list[int] = [64, 128, 224, 256, 384, 512]
    if own is not None:
        sides.insert(0, own[0] if isinstance(own, tuple | list) else own)  # type: ignore[arg-type]
    return first_that_runs(model, [noise(model, 1, channels, side, side) for side in sides])


def save_config(model: Any, folder: str) -> None:
    """``config.json`` as smp writes it, with the class's name, so that ``smp.from_pretrained`` finds the
    class."""
    config = {**model.config, "_model_class": type(model).__name__}
    Path(folder, "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def build(cls: type, folder: str) -> nn.Module:
    """A model of ``cls`` from its ``config.json``, without downloading the encoder's weights."""
    config = json.loads(Path(folder, "config.json").read_text())
    config.pop("_model_class", None)
    return cls(**{**config, "encoder_weights": None})


SMP = Adapter(
    "smp",
    comes_from("segmentation_models_pytorch"),
    example_inputs,
    pretrained=Pretrained("segmentation_models_pytorch.base.hub_mixin", "SMPHubMixin", save_config, build),
)
