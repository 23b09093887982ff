"""What the model's last operator alone can do, in closed form: a start for the rounds that holds for other
pictures too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pixelize.measure.any_axes import Frequency
from pixelize.measure.checkerboard import WINDOWED
from pixelize.measure.natural import ArtifactLevels
from pixelize.refit.calls import SeenCall, calls_seen, named_parameters, replaced
from pixelize.refit.coordinates import Within
from pixelize.refit.judgement import Judge
from pixelize.refit.last_convolution import LastConvolution
from pixelize.refit.least_change import Batch
from pixelize.refit.prefix_cache import Replay
from pixelize.refit.price import Price
from pixelize.refit.setting import Setting, mean_square
from pixelize.refit.steady import Steady

ENOUGH = 0.05
"""Share of the pattern, or of the cost, below which less is worth little change of the pictures."""
_PRICE, _ALIKE = 0.35, 0.02
"""Of starts that score alike, log(share of the pattern left + ENOUGH) + price log(change), the one that
asks most for the pattern holds for most pictures."""


class _Solver(Protocol):
    def solved(self, mu: float) -> tuple[Tensor, Tensor | None]: ...

    def within(self, change: Tensor) -> Tensor: ...


@dataclass
class Start:
    """New values by name, the levels with them, and what keeps a weight's further change from what was
    reached."""

    levels: ArtifactLevels
    values: dict[str, Tensor] = field(default_factory=dict)
    within: dict[str, Within] = field(default_factory=dict)
    change: float = 0.0
    """Mean square change of the pictures."""


def closed_forms(
    setting: Setting,
    judge: Judge,
    held: list[Batch],
    examples: list[Batch],
    pictures: list[Tensor],
    most: float,
    price: Price,
) -> Start:
    """Those with the least cost on what was held back, of several weights of the pattern
    against the change of the pictures; none where none is better than the model's own.

    The last operator's phases are made to answer what is steady alike if it up-samples, and it is made blind
    to the lines that it reads if it is a convolution after the last up-sampling. Only the frequencies that it
    can help are judged, and what begins to stand out most: what lies deeper is for the rounds.
    """
    last, limits = setting.calls[-1], setting.limits
    own = [c for c in setting.candidates if last.number in c.numbers and len(c.numbers) == 1]
    best = Start(judge.before)
    if not own:
        return best
    named = named_parameters(setting.runner.model)
    weight = own[0].weights[0]
    bias = last.bias if last.shuffle > 1 and last.bias in own[0].weights else ""
    solver = _solver(setting, judge, last, named[weight], named[bias] if bias else None, examples, price)
    if solver is None:
        return best
    replay = Replay(last.number, len(setting.calls), limits.kept_bytes)
    ways = own[0].grid if last.kind == "transposed" or last.shuffle > 1 else setting.windows.period
    within_reach = tuple(c for c in judge.wanted if ways % setting.windows.own_period(c[1]) == 0)
    own_judge = replace(judge, wanted=within_reach, limits=replace(limits, further=0.0))
    whole = own_judge.left(judge.before)
    lowest, least = math.inf, whole
    for mu in limits.steady if whole else ():
        new, other = solver.solved(mu)
        values = {weight: new} if other is None else {weight: new, bias: other}
        now = []
        with torch.no_grad(), replaced(setting.runner.model, values):
            for n, batch in enumerate(held):
                with replay.batch(n):
                    now.append(setting.runner(batch).cpu())
        change = mean_square(now, pictures)
        if not 0 < change <= most:
            continue
        levels = judge.levels(now)
        rises = [rise for c, rise in judge.rises(levels).items() if c not in judge.wanted]
        left = own_judge.left(levels) + limits.worse_price * max(rises, default=0.0)
        score = math.log(left / whole + ENOUGH) + _PRICE * math.log(change)
        if left < whole and score < lowest - _ALIKE:
            lowest, least, best = score, left, Start(levels, values, {weight: solver.within}, change)
    if least > limits.worth * whole:
        best.within.clear()  # much is left, which a change of the answers may take away
    return best


def _solver(
    setting: Setting,
    judge: Judge,
    last: SeenCall,
    weight: Tensor,
    bias: Tensor | None,
    examples: list[Batch],
    price: Price,
) -> _Solver | None:
    if last.kind == "linear":
        return None
    (seen,) = calls_seen(setting.runner, len(setting.calls), {last.number: "last"}, examples).values()
    if last.kind == "transposed" or last.shuffle > 1:
        return Steady(weight, bias, seen, last.shuffle)
    if max(weight.shape[2:]) == 1 or set(last.made) != {1}:
        return None
    return LastConvolution(weight, seen, _lines(judge), price)


def _lines(judge: Judge) -> dict[Frequency, float]:
    """Natural power at the frequencies that stand out, the farthest first."""
    far: dict[Frequency, float] = {}
    for c in judge.wanted:
        far[c[1]] = max(far.get(c[1], 0.0), judge.over(judge.before, c))
    return {f: judge.before.expected[WINDOWED, f] for f in sorted(far, key=lambda f: -far[f])}
