"""Running a model at another input size, to see whether its resizes keep their factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from pixelize.rewrites.seeing.apart import apart
from pixelize.rewrites.seeing.capture import recorded

RATIOS = (1.5, 2.0, 0.5)


def resized_inputs(example_inputs: Any, ratio: float) -> Any:
    """The same inputs with every picture, a floating-point tensor (N, C, H, W), resized by ``ratio``."""
    if isinstance(example_inputs, Tensor):
        if example_inputs.dim() != 4 or not example_inputs.is_floating_point():
            return example_inputs
        size = [max(1, round(d * ratio)) for d in example_inputs.shape[-2:]]
        return F.interpolate(example_inputs, size, mode="nearest")
    if isinstance(example_inputs, Mapping):
        return {k: resized_inputs(v, ratio) for k, v in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(resized_inputs(v, ratio) for v in example_inputs)
    return example_inputs


def at_another_size(model: nn.Module, example_inputs: Any) -> fx.Graph | None:
    """What ``model`` runs at another input size than that of ``example_inputs``; None if it takes no other
    (of those tried)."""
    for ratio in RATIOS:
        try:
            with apart(model) as copy:
                return recorded(copy, resized_inputs(example_inputs, ratio))
        except Exception:  # a size that this model does not take
            continue
    return None
