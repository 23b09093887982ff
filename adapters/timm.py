"""timm: a picture of the size that the model's own configuration names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pixelize.adapters.adapter import Adapter, comes_from
from pixelize.adapters.guessed_inputs import first_that_runs, noise


def example_inputs(model: Any) -> Tensor:
    """(1, C, H, W): 64 x 64 where the model takes that, else the size of its ``default_cfg``."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    size = tuple((getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224)))
    candidates = [noise(model, 1, first.in_channels, side, side) for side in (64, 128)]
    return first_that_runs(model, [*candidates, noise(model, 1, first.in_channels, *size[1:])])


TIMM = Adapter("timm", comes_from("timm"), example_inputs)
