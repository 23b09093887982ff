"""The way of one repair: find what can make a pattern, measure, choose, solve in rounds, keep the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pixelize.measure.checkerboard import GLOBAL, WINDOWED, frequency_name
from pixelize.measure.content import content_change
from pixelize.measure.decibels import decibels, psnr
from pixelize.measure.natural import ArtifactLevels
from pixelize.measure.spectrum import mean_power
from pixelize.refit.calls import Call, Compute, SeenCall, Watch, calls_of, named_parameters, replaced
from pixelize.refit.candidates import Candidate, candidates_of
from pixelize.refit.judgement import Judge
from pixelize.refit.least_change import Batch, LeastChange, Price
from pixelize.refit.limits import RepairLimits
from pixelize.refit.powers import Windows, powers, prominence
from pixelize.refit.report import RepairedSite, RepairReport
from pixelize.refit.samples import Runner, Sample, Samples, split
from pixelize.refit.steady import Steady


@dataclass
class Refit:
    """New values of parameters by name (none: the model stays as it is), and the report."""

    values: dict[str, Tensor] = field(default_factory=dict)
    report: RepairReport = field(default_factory=RepairReport)


@dataclass
class Setting:
    """What stands once the model has been seen at work: nothing in here changes from round to round."""

    runner: Runner
    calls: list[SeenCall]
    candidates: list[Candidate]
    windows: Windows
    samples: Samples
    limits: RepairLimits


def refit(model: nn.Module, taken: list[Sample], limits: RepairLimits, bar: Any) -> Refit:
    """Other values for some of the model's weights, with which its pictures show no pattern.

    The model is in evaluation mode; what is done to it here (whether parameters require a gradient) is for
    the caller to undo.
    """
    for parameter in named_parameters(model).values():
        if parameter.is_floating_point() and parameter.is_leaf:
            parameter.requires_grad_(True)
    runner = Runner(model, taken[0])
    sizes = {tuple(runner([s]).shape[-2:]) for s in _sizes(taken)}
    size = (min(s[0] for s in sizes), min(s[1] for s in sizes))
    calls = calls_of(model, lambda: runner([taken[0]]))
    whole = runner([taken[0]])
    found = candidates_of(calls, named_parameters(model), (whole.shape[-2], whole.shape[-1]), limits)
    sites = [RepairedSite(name, "skipped", reason) for name, reason in found.passed.items()]
    if found.period == 1 or not found.candidates:
        notes = ["no up-sampling was seen whose pattern could be measured in pictures of "
                 f"{whole.shape[-2]}x{whole.shape[-1]} pixels"]  # fmt: skip
        return Refit(report=RepairReport(sites, notes=notes))
    if 8 * found.period > min(size):
        small = limits.period
        while small > 1 and 8 * small > min(size):
            small //= 2
        found = candidates_of(calls, named_parameters(model), size, limits)
    samples = split(runner, taken, limits, found.period)
    pieces = {tuple(runner([s]).shape[-2:]) for s in _sizes(samples.fit + samples.held)}
    runner.size = (min(s[0] for s in pieces), min(s[1] for s in pieces))
    with torch.no_grad():
        calls = calls_of(model, lambda: runner([samples.fit[0]]))
    windows = Windows(runner.size, found.period)
    setting = Setting(runner, calls, found.candidates, windows, samples, limits)
    result = _refitted(setting, bar)
    return replace(result, report=replace(result.report, sites=[*result.report.sites, *sites]))


def _refitted(setting: Setting, bar: Any) -> Refit:
    limits, samples, runner = setting.limits, setting.samples, setting.runner
    held = _batches(samples.held, limits.batch)
    pictures = _pictures(runner, held)
    good = _sound(pictures, limits)
    if not all(good):
        held = _batches([s for s, g in zip(samples.held, good, strict=True) if g], limits.batch)
        pictures = _pictures(runner, held)
    judge = Judge.of(pictures, setting.windows, limits)
    notes = list(samples.notes)
    if samples.few:
        notes.append(
            f"{samples.pictures} samples are few: on other pictures more of the pattern may be left than is "
            "reported here"
        )
    if not judge.wanted:
        sites = [RepairedSite(c.name, "left", "the pictures show no pattern") for c in setting.candidates]
        return Refit(report=_report(setting, sites, judge, judge.before, pictures, pictures, notes))
    longest = math.lcm(*(setting.windows.own_period(f) for _, f in judge.wanted))
    setting = replace(setting, candidates=[c for c in setting.candidates if c.grid <= longest])
    price = _price(pictures, judge, limits)
    chosen, shares = _guilty(setting, judge, price)
    sites = [
        RepairedSite(c.name, "left", "it makes little of the pattern", shares.get(c.name))
        for c in setting.candidates
        if c not in chosen
    ]
    best = _rounds(setting, chosen, judge, price, held, pictures, bar)
    if not best.values:
        sites = [RepairedSite(c.name, "left", best.why, shares.get(c.name)) for c in chosen] + sites
        return Refit(report=_report(setting, sites, judge, judge.before, pictures, pictures, notes))
    sites = [RepairedSite(c.name, "repaired", share=shares.get(c.name)) for c in chosen] + sites
    with replaced(runner.model, best.values):
        last = _pictures(runner, held)
    return Refit(best.values, _report(setting, sites, judge, best.levels, pictures, last, notes))


def _guilty(setting: Setting, judge: Judge, price: Price) -> tuple[list[Candidate], dict[str, float]]:
    """The candidates that can take most of the pattern out, at a given change of the pictures; and how much,
    the best being 1.

    In coordinates of equal cost that is the squared gradient of the pattern's power. It is estimated as the
    product of gradients over two halves of the data: what only one half shows is no pattern of the model's.
    """
    limits, samples = setting.limits, setting.samples
    near = setting.candidates[: 2 * limits.layers]
    cost = sum(c.multiply_adds for c in setting.calls)
    half = max(2, min(limits.batch, len(samples.fit) // 2, round(limits.multiply_adds / 40 / (6 * cost))))
    halves = [samples.fit[:half], samples.fit[half : 2 * half] or samples.fit[:half]]
    fit = LeastChange(setting.runner, len(setting.calls), near, halves, price, limits, limits.ridge)
    weights = {c: 1 / judge.before.natural[c] for c in judge.wanted}

    def pattern(y: Tensor) -> Tensor:
        found = powers(y, setting.windows, weights)
        return sum((w * found[c] for c, w in weights.items()), torch.zeros(()))

    names = list(fit.unknowns)
    grads = []
    for batch in halves:
        parts = [fit.gradient(b, pattern) for b in _batches(batch, max(1, half // 4))]
        grads.append([torch.stack(p).mean(0) for p in zip(*parts, strict=True)])
    gains = {name: (a * b).sum().item() for name, a, b in zip(names, *grads, strict=True)}
    of = {c: sum(gains.get(w, 0.0) for w in c.weights) for c in near}
    most = max(of.values())
    shares = {c.name: v / most for c, v in of.items()} if most > 0 else {}
    ranked = sorted(near, key=lambda c: -of[c])
    chosen = [c for c in ranked if of[c] >= limits.share * most][: limits.layers] or near[:1]
    return chosen, shares


@dataclass
class _Best:
    levels: ArtifactLevels
    values: dict[str, Tensor] = field(default_factory=dict)
    cost: float = math.inf
    why: str = ""


def _rounds(
    setting: Setting,
    chosen: list[Candidate],
    judge: Judge,
    price: Price,
    held: list[Batch],
    pictures: list[Tensor],
    bar: Any,
) -> _Best:
    """Round after round, as long as the levels come down."""
    limits, samples, runner = setting.limits, setting.samples, setting.runner
    first = min(n for c in chosen for n in c.numbers)
    before = sum(c.multiply_adds for c in setting.calls if c.number < first)
    tail = sum(c.multiply_adds for c in setting.calls if c.number >= first)
    per_sample = limits.rounds * (before + 3 * (limits.steps + 2) * tail)
    size = max(8, min(limits.portion, len(samples.fit), int(limits.multiply_adds / (per_sample + 1))))
    rounds = max(6, min(limits.rounds, int(limits.rounds * limits.multiply_adds / (size * per_sample + 1))))
    ridge = limits.ridge * (1 + limits.few / max(1, min(size, len(samples.fit))))
    looked = _batches(samples.fit[: min(len(samples.fit), max(16, size // 2))], 16)
    peak = float(max(p.max() for p in pictures) - min(p.min() for p in pictures))
    most = max(limits.dear * judge.pattern(), limits.change * peak**2)
    start = judge.cost(judge.before)
    best = _steady(setting, judge, held, looked, pictures, _Best(judge.before, cost=start), most)
    if {n for c in chosen for n in c.weights}.isdisjoint(best.values):
        chosen = [c for c in setting.candidates if c.weights[0] in best.values] + chosen
    fit = LeastChange(runner, len(setting.calls), chosen, looked, price, limits, ridge, best.values)
    batch = max(1, min(limits.batch, int(limits.graph_bytes / (_graph_bytes(fit, samples.fit[0]) + 1))))
    some = samples.fit[: size * rounds]
    good = _sound(_pictures(runner, _batches(some, limits.batch)), limits)
    sound = [s for s, g in zip(some, good, strict=True) if g]
    idle, levels, changes = 0, best.levels, [0.0]
    task = bar.add_task(f"refitting {', '.join(c.name for c in chosen)}", total=rounds)
    for portion in _portions(sound, size, batch, rounds):
        fit.solve(portion, judge.ratios(levels))
        values = fit.averaged()
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
        changes.append(change)
        if cost < best.cost * (1 - limits.progress):
            idle = 0
        else:
            idle += 1
        if cost < best.cost and change <= most:
            best = _Best(levels, values, cost)
        if cost <= limits.done * start or idle > limits.patience:
            break
    bar.remove_task(task)
    if not best.values and not best.why:
        best.why = _why(judge, levels, changes[-1], most)
    return best


def _steady(
    setting: Setting,
    judge: Judge,
    held: list[Batch],
    looked: list[Batch],
    pictures: list[Tensor],
    best: _Best,
    most: float,
) -> _Best:
    """Where nothing with weights follows the last up-sampling: its phases equal, if that is better."""
    last = setting.calls[-1]
    own = [c for c in setting.candidates if last.number in c.numbers and len(c.numbers) == 1]
    if not own or (last.kind != "transposed" and last.shuffle == 1):
        return best
    weight = own[0].weights[0]
    bias = last.bias if last.shuffle > 1 and last.bias in own[0].weights else ""
    named = named_parameters(setting.runner.model)
    seen: list[Call] = []

    def look(number: int, call: Call, compute: Compute) -> Tensor:
        if number % len(setting.calls) == last.number:
            seen.append(call)
        return compute(call.input)

    with torch.no_grad(), Watch(look):
        for batch in looked:
            setting.runner(batch)
    steady = Steady(named[weight], named[bias] if bias else None, seen, last.shuffle)
    for mu in setting.limits.steady:
        new, other = steady.solved(mu)
        values = {weight: new} if other is None else {weight: new, bias: other}
        with replaced(setting.runner.model, values):
            now = _pictures(setting.runner, held)
        if not _mean_square(now, pictures) <= most:
            continue
        levels = judge.levels(now)
        cost = judge.cost(levels)
        if cost < best.cost:
            best = _Best(levels, values, cost)
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
    return now, _mean_square(now, pictures)


def _mean_square(some: list[Tensor], others: list[Tensor]) -> float:
    """Of the difference."""
    total = sum((a - b).double().square().sum().item() for a, b in zip(some, others, strict=True))
    return total / sum(a.numel() for a in some)


def _portions(samples: list[Sample], size: int, batch: int, rounds: int) -> Iterator[list[Batch]]:
    """Batches to fit to, round after round through all samples."""
    at = 0
    for _ in range(rounds):
        some = [samples[(at + n) % len(samples)] for n in range(min(size, len(samples)))]
        at += len(some)
        yield _batches(some, batch)


def _pictures(runner: Runner, batches: list[Batch]) -> list[Tensor]:
    with torch.no_grad():
        return [runner(batch).cpu() for batch in batches]


def _sound(pictures: list[Tensor], limits: RepairLimits) -> list[bool]:
    """Which pictures are no failures of a generator's: their power at the multiples of 1/2 is not many times
    what is usual."""
    if sum(map(len, pictures)) < 16:
        return [True] * sum(map(len, pictures))
    found = torch.cat([prominence(y) for y in pictures])
    usual = found.median(0).values
    return [bool(good) for good in (found <= limits.failure * usual).all(1)]


def _price(pictures: list[Tensor], judge: Judge, limits: RepairLimits) -> Price:
    """v(f) from the spectrum of the pictures, and the bins away from what is to fall."""
    height, width = judge.windows.whole
    spectrum = mean_power(p[..., :height, :width] for p in pictures)
    value = (spectrum / spectrum.max()).clamp_min(1e-6) ** -limits.whitening
    far = torch.ones(height, width, dtype=torch.bool)
    down, across = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    for f in {f for _, f in judge.wanted}:
        reach = min(1 / 16, 1 / (4 * judge.windows.own_period(f)))
        for sign in (1, -1):
            off = [((v - sign * w + 0.5) % 1 - 0.5).abs() for v, w in zip((down, across), f, strict=True)]
            far &= torch.maximum(off[0][:, None], off[1]) > reach
    return Price((value / value.mean()).float(), far, judge.windows)


def _graph_bytes(fit: LeastChange, sample: Sample) -> int:
    """What the gradient of one sample's picture needs to keep."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda t: t):
        fit.picture([sample])
    return sum(seen.values())


def _batches(samples: list[Sample], size: int) -> list[Batch]:
    """All of about one length, that none is too small to say what is coherent."""
    count = max(1, -(-len(samples) // size))
    length = -(-len(samples) // count) if samples else 1
    return [samples[n : n + length] for n in range(0, len(samples), length)]


def _sizes(samples: list[Sample]) -> list[Sample]:
    """One sample of each shape."""
    from pixelize.refit.samples import shape_of

    return list({shape_of(s): s for s in samples}.values())


def _report(
    setting: Setting,
    sites: list[RepairedSite],
    judge: Judge,
    after: ArtifactLevels,
    first: list[Tensor],
    last: list[Tensor],
    notes: list[str],
) -> RepairReport:
    content = None
    if last is not first:
        peak = max(p.max().item() for p in first) - min(p.min().item() for p in first)
        content = content_change(first, last, peak, judge.windows.whole, judge.windows.period)
    return RepairReport(
        sites,
        _named(judge, judge.before),
        _named(judge, after),
        psnr(first, last) if last is not first else math.inf,
        content,
        samples=sum(map(len, first)),
        notes=notes,
    )


def _named(judge: Judge, levels: ArtifactLevels) -> dict[str, dict[str, float]]:
    named: dict[str, dict[str, float]] = {}
    for (form, f), power in levels.power.items():
        if form not in (GLOBAL, WINDOWED):
            continue
        named.setdefault(form, {})[frequency_name(f)] = decibels(power / judge.before.natural[form, f])
    return named
