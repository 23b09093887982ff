"""Round after round of the fit, from the steady start, as long as the levels come down; the best is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pixelize.measure.checkerboard import frequency_name
from pixelize.measure.natural import ArtifactLevels
from pixelize.refit.candidates import Candidate
from pixelize.refit.closed_form import ENOUGH, closed_forms
from pixelize.refit.judgement import Judge
from pixelize.refit.least_change import Batch, LeastChange
from pixelize.refit.price import Price
from pixelize.refit.sample import Sample
from pixelize.refit.setting import Setting, batches_of, mean_square, pictures_with, sound

_LITTLE = "a refit takes too little of what stands out away: it may be the pictures' content"


@dataclass
class Best:
    levels: ArtifactLevels
    values: dict[str, Tensor] = field(default_factory=dict)
    score: float = math.inf
    """(share of the cost + ENOUGH) times the change of the pictures, where that is over what is free."""
    why: str = ""


def best_of_rounds(
    setting: Setting,
    chosen: list[Candidate],
    judge: Judge,
    price: Price,
    held: list[Batch],
    pictures: list[Tensor],
    bar: Any,
) -> Best:
    """Round after round, as long as the levels come down."""
    limits, samples, runner = setting.limits, setting.samples, setting.runner
    first = min(n for c in chosen for n in c.numbers)
    before = sum(c.multiply_adds for c in setting.calls if c.number < first)
    tail = sum(c.multiply_adds for c in setting.calls if c.number >= first)
    per_sample = limits.rounds * (before + 3 * (limits.steps + 2) * tail)
    size = max(8, min(limits.portion, len(samples.fit), int(limits.multiply_adds / (per_sample + 1))))
    rounds = max(6, min(limits.rounds, int(limits.rounds * limits.multiply_adds / (size * per_sample + 1))))
    ridge = limits.ridge * (1 + limits.few / max(1, min(size, len(samples.fit))))
    examples = batches_of(samples.fit[: min(len(samples.fit), max(16, size // 2))], 16)
    peak = float(max(p.max() for p in pictures) - min(p.min() for p in pictures))
    always = limits.change * peak**2
    most, free = (max(times * judge.pattern(), always) for times in (limits.dear, limits.pays))
    start = judge.cost(judge.before)

    def score(cost: float, change: float) -> float:
        return (cost / start + ENOUGH) * max(1.0, change / free)

    begin = closed_forms(setting, judge, held, examples, pictures, most, price)
    best = Best(judge.before, score=score(start, 0.0))
    cost = judge.cost(begin.levels)
    if cost < start and not judge.worse(begin.levels):
        best = Best(begin.levels, begin.values, score(cost, begin.change))
    plain = replace(judge, limits=replace(limits, further=0.0))
    if best.values and plain.cost(best.levels) <= limits.worth * plain.cost(judge.before):
        return best  # it holds for pictures not seen, and rounds add little
    if {c.weights[0] for c in chosen}.isdisjoint(begin.values):
        chosen = [c for c in setting.candidates if c.weights[0] in begin.values] + chosen
    fit = LeastChange(
        runner, len(setting.calls), chosen, examples, price, limits, ridge, begin.values, begin.within
    )
    batch = max(1, min(limits.batch, int(limits.graph_bytes / (_graph_bytes(fit, samples.fit[0]) + 1))))
    some = samples.fit[: size * rounds]
    if not samples.enlarged:
        good = sound(pictures_with(runner, batches_of(some, limits.batch)), limits)
        some = [s for s, g in zip(some, good, strict=True) if g]
    idle, levels, changes = 0, begin.levels, [0.0]
    task = bar.add_task(f"refitting {', '.join(c.name for c in chosen)}", total=rounds)
    for portion in _portions(some, size, batch, rounds):
        fit.solve(portion, judge.ratios(levels))
        values = {**begin.values, **fit.averaged()}
        now, change = _tried(fit, held, values, pictures)
        too_far = not change <= most
        if too_far and math.isfinite(change):  # part of the way
            fit.multipliers.soften(most / change)
            whole, low, high = values, 0.0, 1.0
            for _ in range(4):
                share = (low + high) / 2
                values = {n: fit.named[n].detach().lerp(v, share) for n, v in whole.items()}
                now, change = _tried(fit, held, values, pictures)
                low, high = (share, high) if change <= most else (low, share)
        elif change < 0.7 * most:
            fit.multipliers.relax()
        bar.advance(task)
        if not math.isfinite(change):
            best.why = "with other weights the pictures are not finite"
            break
        levels = judge.levels(now)
        cost = judge.cost(levels)
        scored = score(cost, change)
        changes.append(change)
        idle = 0 if scored < best.score * (1 - limits.progress) else idle + 1
        if scored < best.score and change <= most and not judge.worse(levels):
            best = Best(levels, values, scored)
        if cost <= limits.done * start or idle > limits.patience:
            break
    bar.remove_task(task)
    if best.values and plain.cost(best.levels) > (1 - limits.worth) * plain.cost(judge.before):
        best = Best(judge.before, why=_LITTLE)
    if not best.values and not best.why:
        best.why = _why(judge, levels, changes[-1], most)
    return best


def _why(judge: Judge, levels: ArtifactLevels, change: float, most: float) -> str:
    """Which of the conditions the last round failed."""
    rises = judge.rises(levels)
    if rises:
        c = max(rises, key=lambda c: rises[c])
        return (
            f"a refit would make {frequency_name(c[1])} ({c[0]}) worse: "
            f"{judge.before.excess[c]:+.1f} dB to {levels.excess[c]:+.1f} dB"
        )
    if change > 0.9 * most:
        return "a refit would change the pictures by more than the pattern itself"
    return "no refit brought the pattern down on what was held back"


def _tried(
    fit: LeastChange, held: list[Batch], values: Mapping[str, Tensor], pictures: list[Tensor]
) -> tuple[list[Tensor], float]:
    """The pictures of what is held back with other weights, and the mean square of their change."""
    with torch.no_grad():
        now = [fit.held_picture(n, batch, values).cpu() for n, batch in enumerate(held)]
    return now, mean_square(now, pictures)


def _portions(samples: list[Sample], size: int, batch: int, rounds: int) -> Iterator[list[Batch]]:
    """Batches to fit to, round after round through all samples."""
    at = 0
    for _ in range(rounds):
        some = [samples[(at + n) % len(samples)] for n in range(min(size, len(samples)))]
        at += len(some)
        yield batches_of(some, batch)


def _graph_bytes(fit: LeastChange, sample: Sample) -> int:
    """What the gradient of one sample's picture needs to keep."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda t: t):
        fit.picture([sample])
    return sum(seen.values())
