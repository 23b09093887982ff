"""Boundary IoU: the intersection over union of what lies near the outlines, where up-sampling shows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


class BoundaryIoU(Metric):
    """Mean boundary IoU of label maps over the classes that occur (Cheng et al. 2021, *Boundary IoU*).

    A class's boundary is made of those of its pixels that have a pixel of another class within ``d`` pixels,
    along rows, columns and diagonals; ``d`` is ``share`` of the picture's diagonal, rounded, and at least 1.
    The figure of a class is the IoU of its boundaries in prediction and truth, over all pictures together.
    Unlike the authors' code, neither the picture's border nor an edge to void pixels makes a boundary, and
    void pixels count nowhere.

    Args:
        classes: how many there are.
        ignore: the label of void pixels.
        share: of the diagonal; the authors' value is 0.02.
    """

    full_state_update = False
    intersection: Tensor
    union: Tensor

    def __init__(self, classes: int, ignore: int = 255, share: float = 0.02, **options: Any) -> None:
        super().__init__(**options)
        self.classes, self.ignore, self.share = classes, ignore, share
        for name in ("intersection", "union"):
            self.add_state(name, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds predicted and true labels ``(N, H, W)``."""
        void = target == self.ignore
        distance = max(1, round(self.share * math.hypot(*target.shape[-2:])))
        mine, true = (boundaries(x, void, self.classes, distance) for x in (preds, target))
        self.intersection += (mine & true).sum((0, 2, 3))
        self.union += (mine | true).sum((0, 2, 3))

    def compute(self) -> Tensor:
        """The mean over the classes that have a boundary in prediction or truth; nan if none has."""
        present = self.union > 0
        return (self.intersection[present] / self.union[present]).mean()


def boundaries(labels: Tensor, void: Tensor, classes: int, distance: int) -> Tensor:
    """Each class's boundary: ``labels`` and ``void`` ``(N, H, W)`` to bool ``(N, classes, H, W)``."""
    members = labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]
    members = members & ~void[:, None]
    others = ~members & ~void[:, None]
    near = F.max_pool2d(others.float(), 2 * distance + 1, stride=1, padding=distance) > 0
    return members & near
