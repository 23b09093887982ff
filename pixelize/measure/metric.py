"""The checkerboard measure as a torchmetrics ``Metric``; only this module needs torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.extras import require
from pixelize.measure.checkerboard import (
    GLOBAL,
    ArtifactPower,
    artifact_power,
    as_periods,
    excess,
    frequency_name,
    minimum_size,
)
from pixelize.measure.planes import image_planes

require("recipes", "CheckerboardMetric (pixelize.checkerboard(images) measures the same without it)")
from torchmetrics import Metric  # noqa: E402


class CheckerboardMetric(Metric):
    """:func:`pixelize.checkerboard`, streamed over batches and summed over processes.

    ``compute()`` gives one flat dictionary of 0-dimensional tensors, in dB, ready for a logger:
    ``"global (0,1/2)"`` ..., ``"windowed (0,1/2)"`` ..., ``"worst"``.

    Args:
        period: as for :func:`pixelize.checkerboard`.
        kwargs: as for ``torchmetrics.Metric``.

    >>> metric = CheckerboardMetric()
    >>> for batch in torch.rand(2, 8, 3, 32, 32):
    ...     metric.update(batch)
    >>> sorted(metric.compute())[0]
    'global (0,1/2)'
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    whole: Tensor
    windowed: Tensor
    mean_square: Tensor
    planes: Tensor

    def __init__(self, period: int | tuple[int, int] = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.periods = as_periods(period)
        zero = artifact_power(torch.zeros(1, *minimum_size(self.periods), dtype=torch.float64), self.periods)
        for name in ("whole", "windowed", "mean_square", "planes"):
            self.add_state(name, torch.zeros_like(getattr(zero, name)), dist_reduce_fx="sum")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Moves the sums with the module; they stay where they are if a device has no float64 (Apple's)."""
        try:
            return super()._apply(*args, **kwargs)
        except TypeError:
            return self

    def update(self, images: Tensor | np.ndarray) -> None:
        """Take in a batch ``(N, C, H, W)``, ``(C, H, W)`` or ``(H, W)``.

        Raises:
            ArgumentError: as :func:`pixelize.checkerboard`.
        """
        for planes in image_planes(images, minimum_size(self.periods)):
            power = artifact_power(planes, self.periods)
            for name in ("whole", "windowed", "mean_square", "planes"):
                state = getattr(self, name)
                setattr(self, name, state + getattr(power, name).to(state))

    def compute(self) -> dict[str, Tensor]:
        """The figures in dB.

        Raises:
            ArgumentError: nothing was taken in yet.
        """
        if not self.planes:
            raise ArgumentError("CheckerboardMetric has seen no images; call update(images) first.")
        power = ArtifactPower(self.whole, self.windowed, self.mean_square, self.planes)
        levels = excess(power, self.periods)
        flat = {f"{form} {frequency_name(f)}": level.float() for (form, f), level in levels.items()}
        flat["worst"] = (
            torch.stack([level for (form, _), level in levels.items() if form == GLOBAL]).max().float()
        )
        return flat
