"""torchvision: segmentation networks take a batch, detectors a list of pictures."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixelize.adapters.adapter import Adapter, comes_from
from pixelize.adapters.guessed_inputs import first_that_runs, noise


def example_inputs(model: nn.Module) -> Any:
    """A batch (1, C, 64, 64), or a list of one picture (C, 64, 64) for a detector."""
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    if hasattr(model, "roi_heads") or hasattr(model, "transform"):
        return ([noise(model, channels, 64, 64).sigmoid()],)
    return first_that_runs(model, [noise(model, 1, channels, side, side) for side in (64, 224)])


TORCHVISION = Adapter("torchvision", comes_from("torchvision"), example_inputs)
