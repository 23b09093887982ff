"""Running a model at another input size, to see whether its resizes keep their factors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pixelize.rewrites.seeing.apart import apart
from pixelize.rewrites.seeing.bounded import Bounded
from pixelize.rewrites.seeing.capture import recorded

RATIOS = (1.5, 2.0, 0.5)


PICTURES = (4, 5)
"""The dimensions of pictures (N, C, H, W) and volumes (N, C, D, H, W)."""


def resized_inputs(
    example_inputs: Any, ratio: float, dims: Collection[int] = PICTURES, channels_last: bool = False
) -> Any:
    """The same inputs with every floating-point tensor of ``dims`` dimensions resized by ``ratio``: along
    all axes behind its channels (before them, if ``channels_last``)."""
    if isinstance(example_inputs, Tensor):
        if example_inputs.dim() not in dims or not example_inputs.is_floating_point():
            return example_inputs
        x = example_inputs.movedim(-1, 1) if channels_last else example_inputs
        x = F.interpolate(x, [max(1, round(d * ratio)) for d in x.shape[2:]], mode="nearest")
        return x.movedim(1, -1) if channels_last else x
    if isinstance(example_inputs, Mapping):
        return {k: resized_inputs(v, ratio, dims, channels_last) for k, v in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(resized_inputs(v, ratio, dims, channels_last) for v in example_inputs)
    return example_inputs


def at_another_size(model: nn.Module, example_inputs: Any) -> fx.Graph | None:
    """What ``model`` runs at another input size than that of ``example_inputs``; None if it takes no other
    (of those tried) at a cost that is worth it.

    Of inputs that hold no picture and no volume it is signals (N, C, L), or (N, L, C), that are resized.
    """
    pictures = any(isinstance(v, Tensor) and v.dim() in PICTURES for v in tree_leaves(example_inputs))
    ways: list[tuple[tuple[int, ...], bool]] = (
        [(PICTURES, False)] if pictures else [((3,), False), ((3,), True)]
    )
    for dims, channels_last in ways:
        for ratio in RATIOS:
            try:
                other = resized_inputs(example_inputs, ratio, dims, channels_last)
                with Bounded():
                    return apart(model, partial(recorded, example_inputs=other))
            except Exception:  # a size that this model does not take, or that costs too much
                continue
    return None
