"""The arm that starts as iPixelDCL and ends as PixelDCL: the course of its input gate."""

from __future__ import annotations

import math
from collections.abc import Callable

ANNEALED = "annealed"


def gate_schedule(steps: int, start: float = 0.1, end: float = 0.6) -> Callable[[int], float]:
    """The gate in each of ``steps`` steps: 1 for the share ``start`` of them, then a half cosine down to 0 at
    ``end``, then 0.

    >>> gate = gate_schedule(100)
    >>> [round(gate(t), 2) for t in (0, 10, 35, 60, 99)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    def gate(step: int) -> float:
        passed = (step / steps - start) / (end - start)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, passed))))

    return gate
