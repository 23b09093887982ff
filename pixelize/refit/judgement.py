"""How far pictures are over the level that is natural, and whether other weights are better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pixelize.measure.any_axes import Frequency
from pixelize.measure.checkerboard import GLOBAL, WINDOWED
from pixelize.measure.decibels import decibels
from pixelize.measure.natural import ArtifactLevels
from pixelize.refit.limits import RepairLimits
from pixelize.refit.powers import Constraint, Windows


@dataclass(frozen=True)
class Judge:
    """What is wanted of pictures that were as ``before``.

    ``wanted``: the forms and frequencies that stood out, by more than what is left alone. Only these are to
    fall; all others are not to rise.
    """

    before: ArtifactLevels
    wanted: tuple[Constraint, ...]
    limits: RepairLimits
    windows: Windows

    @staticmethod
    def of(pictures: list[Tensor], windows: Windows, limits: RepairLimits) -> Judge:
        before = windows.levels(pictures)
        spare = spares(pictures, windows, limits)
        wanted = tuple(  # in an order that does not change from process to process
            c
            for c, power in before.power.items()
            if (c[0] == GLOBAL or windows.size(c) != windows.whole)  # both are one there
            and decibels(power / before.expected[c]) > spare[c]
        )
        return Judge(before, wanted, limits, windows)

    def levels(self, pictures: list[Tensor]) -> ArtifactLevels:
        """Of the same samples' pictures with other weights."""
        return self.windows.levels(pictures)

    def over(self, levels: ArtifactLevels, c: Constraint) -> float:
        """Decibels over the level aimed at: over what was natural before, or over what is now, if that is
        less. (What lies around a pattern is part of it and falls with it, up to a limit.)"""
        was, fall = self.before.expected[c], 10 ** (-self.limits.fall(c[0]) / 10)
        natural = max(min(was, levels.expected[c]), was * fall)
        return decibels(levels.power[c] / natural) - self.limits.aim(c[0])

    def ratios(self, levels: ArtifactLevels) -> dict[Constraint, float]:
        """Of levels to their aims, for what is to fall."""
        return {c: 10 ** (self.over(levels, c) / 10) for c in self.wanted}

    def cost(self, levels: ArtifactLevels) -> float:
        """Decibels over the levels aimed at, summed; those of holes, and of what has risen."""
        return self.left(levels) + self.limits.worse_price * sum(self.rises(levels).values())

    def left(self, levels: ArtifactLevels) -> float:
        """Decibels over the levels aimed at, summed, and those of holes."""
        cost = 0.0
        for c in self.wanted:
            over = self.over(levels, c)
            hole = min(0.0, self.over(self.before, c)) - over - self.limits.hole
            cost += max(0.0, over - self.limits.fine) + max(0.0, hole)
        return cost

    def worse(self, levels: ArtifactLevels) -> bool:
        """Whether some frequency stands out more than any did before, and more than is allowed."""
        return max(levels.excess.values()) > max(self.before.excess.values()) + self.limits.worse

    def rises(self, levels: ArtifactLevels) -> dict[Constraint, float]:
        """Decibels by which frequencies stand out more than before and more than is natural, beyond what is
        allowed; no more than by what their power has risen."""
        found = {}
        for c, excess in levels.excess.items():
            rise = excess - max(self.before.excess[c], 0.0)
            rise = min(rise, decibels(levels.power[c] / self.before.power[c])) - self.limits.worse
            if rise > 0:
                found[c] = rise
        return found

    def pattern(self) -> float:
        """The mean square of the pattern that is to be taken out.

        A line of amplitude A at f and -f has Hann-windowed power A^2 h w / 2.25 in a window (h, w), a factor
        n / 1.5 for each axis.
        """
        found: dict[Frequency, float] = {}
        for kind, f in self.wanted:
            over = (
                max(0.0, self.before.power[kind, f] - self.before.expected[kind, f]) * 1.5**self.windows.axes
            )
            over /= math.prod(self.windows.size((kind, f)))
            found[f] = max(found.get(f, 0.0), over)
        return sum(p * (1 if all(2 * v % 1 == 0 for v in f) else 2) for f, p in found.items())


def spares(pictures: list[Tensor], windows: Windows, limits: RepairLimits) -> Mapping[Constraint, float]:
    """Decibels over natural that chance alone may give: the largest of so many frequencies, each with the
    standard error of a mean over so many windows."""
    every = windows.frequencies
    draws = math.sqrt(2 * math.log(2 * len(every)))
    samples, area = sum(map(len, pictures)), math.prod(windows.picture)
    return {
        c: limits.spare + decibels(1 + draws / math.sqrt(samples * area / math.prod(windows.size(c))))
        for c in ((form, f) for form in (GLOBAL, WINDOWED) for f in every)
    }
