"""Lagrange multipliers: one for each constraint, following how far its level is from its aim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pixelize.refit.powers import Constraint
from pixelize.refit.price import Price

_START, _MOST = 2.0, 1e5
"""Multipliers in units of the change's price at their frequency: the first, for a level that is only just
over its aim, and the largest (a level out of reach is not forced)."""


_MORE, _CAUTION = 8.0, 0.6
"""What a multiplier is raised by in a round at most, and the power of that which is done: levels are
measured on an average over rounds, which lags."""


_EAGER = 2.0
"""The power of a level's ratio to its aim by which its multiplier falls."""


@dataclass
class Multipliers:
    """One for each constraint, following how far its level is from its aim."""

    price: Price
    now: dict[Constraint, float] = field(default_factory=dict)
    first: dict[Constraint, float] = field(default_factory=dict)
    strained: bool = False

    def soften(self, share: float) -> None:
        """The pictures changed by too much: only so large a share of the change is allowed."""
        self.strained = True
        self.now = {c: m * math.sqrt(share) for c, m in self.now.items()}

    def relax(self) -> None:
        """The pictures may change by more again."""
        self.strained = False

    def follow(self, over: Mapping[Constraint, float]) -> None:
        """``over``: ratios of levels to their aims, on other data. After :meth:`soften` what one multiplier
        gains the others lose."""
        self.first = self.first or dict(over)
        steps = {c: self._step(c, over[c]) for c, m in self.now.items() if m}
        if self.strained and steps:
            mean = math.exp(sum(map(math.log, steps.values())) / len(steps))
            steps = {c: step / mean for c, step in steps.items()}
        for c, ratio in over.items():
            m = self.now.get(c, 0.0) * steps.get(c, 0.0)
            if not m and ratio > 1.02:
                m = _START * min(ratio, 10.0) * self.price.of_power(c)
            self.now[c] = min(m, _MOST * self.price.of_power(c))

    def _step(self, constraint: Constraint, ratio: float) -> float:
        """What to multiply a multiplier m by. The power at a frequency falls about as (1 + m/p)^-2, p being
        the price of changing it there: how far it has come tells p, and that the m to come."""
        first = self.first[constraint]
        if first < 1.02 or ratio < 0.9:
            return min(max(ratio**_EAGER, 0.1), _MORE)
        come, whole = (math.sqrt(first / r) - 1 for r in (ratio, 1.0))
        return min(whole / max(come, 1e-3), _MORE) ** _CAUTION
