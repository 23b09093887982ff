"""The way of one repair: find what can make a pattern, measure, choose, solve in rounds, keep the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.measure.checkerboard import frequency_name
from pixelize.measure.content import content_change
from pixelize.measure.decibels import decibels, psnr
from pixelize.measure.natural import ArtifactLevels
from pixelize.measure.spectrum import grid, mean_power_nd
from pixelize.refit.calls import calls_of, named_parameters, replaced
from pixelize.refit.candidates import candidates_of
from pixelize.refit.choice import chosen_of
from pixelize.refit.judgement import Judge
from pixelize.refit.limits import RepairLimits
from pixelize.refit.powers import Windows
from pixelize.refit.price import Price
from pixelize.refit.report import RepairedSite, RepairReport
from pixelize.refit.rounds import best_of_rounds
from pixelize.refit.runner import Runner
from pixelize.refit.sample import Sample
from pixelize.refit.samples import split
from pixelize.refit.setting import Setting, batches_of, one_of_each_shape, pictures_with, sound
from pixelize.running.models import programs_in


@dataclass
class Refit:
    """New values of parameters by name (none: the model stays as it is), and the report."""

    values: dict[str, Tensor] = field(default_factory=dict)
    report: RepairReport = field(default_factory=RepairReport)


def refit(model: nn.Module, taken: list[Sample], limits: RepairLimits, bar: Any) -> Refit:
    """Other values for some of the model's weights, with which its pictures show no pattern.

    The model is in evaluation mode; what is done to it here (whether parameters require a gradient) is for
    the caller to undo.
    """
    for parameter in named_parameters(model).values():
        if parameter.is_floating_point() and parameter.is_leaf:
            parameter.requires_grad_(True)
    runner = Runner(model, taken[0])
    size = _least(runner, taken)
    calls = calls_of(model, lambda: runner([taken[0]]))
    whole = runner([taken[0]])
    found = candidates_of(calls, named_parameters(model), tuple(whole.shape[2:]), limits)
    passed = found.passed | programs_in(model)
    sites = [RepairedSite(name, "skipped", reason) for name, reason in passed.items()]
    if found.period == 1 or not found.candidates:
        measured = "x".join(map(str, whole.shape[2:]))
        what = {1: "waveforms of {} samples", 2: "pictures of {} pixels", 3: "volumes of {}"}[runner.axes]
        notes = [f"no up-sampling was seen whose pattern could be measured in {what.format(measured)}"]
        return Refit(report=RepairReport(sites, notes=notes))
    if found.period > limits.longest(size):
        found = candidates_of(calls, named_parameters(model), size, limits)
    samples = split(runner, taken, limits, found.period)
    runner.size = _least(runner, samples.fit + samples.held)
    with torch.no_grad():
        calls = calls_of(model, lambda: runner([samples.fit[0]]))
    windows = Windows(runner.size, found.period)
    limits = limits.with_samples(samples.pictures)
    setting = Setting(runner, calls, found.candidates, windows, samples, limits)
    result = _refitted(setting, bar)
    return replace(result, report=replace(result.report, sites=[*result.report.sites, *sites]))


def _least(runner: Runner, samples: list[Sample]) -> tuple[int, ...]:
    """The size that the pictures of all samples have at least."""
    sizes = [runner([s]).shape[2:] for s in one_of_each_shape(samples)]
    return tuple(min(along) for along in zip(*sizes, strict=True))


def _refitted(setting: Setting, bar: Any) -> Refit:
    limits, samples, runner = setting.limits, setting.samples, setting.runner
    held = batches_of(samples.held, limits.batch)
    pictures = pictures_with(runner, held)
    if not samples.enlarged and not all(good := sound(pictures, limits)):
        held = batches_of([s for s, g in zip(samples.held, good, strict=True) if g], limits.batch)
        pictures = pictures_with(runner, held)
    given = len(held)
    held += batches_of(samples.enlarged, limits.batch)
    pictures += pictures_with(runner, held[given:])
    across = tuple(range(2, pictures[0].dim()))
    if all(float(p.std(across).max()) <= 1e-6 * float(p.abs().max()) for p in pictures):
        sites = [RepairedSite(c.name, "left", "the pictures are plain") for c in setting.candidates]
        return Refit(report=RepairReport(sites, notes=["each of the pictures has one value all over it"]))
    judge = Judge.of(pictures, setting.windows, limits)
    notes = list(samples.notes)
    if samples.few:
        notes.append(
            f"{samples.pictures} samples are few: on other pictures more of the pattern may be left than is "
            "reported here"
        )
    if not judge.wanted:
        sites = [RepairedSite(c.name, "left", "the pictures show no pattern") for c in setting.candidates]
        return Refit(report=_report(setting, sites, judge, judge.before, pictures, pictures, given, notes))
    longest = math.lcm(*(setting.windows.own_period(f) for _, f in judge.wanted))
    coarse = [
        RepairedSite(c.name, "left", f"it works on a grid of {c.grid} pixels: no pattern so long was seen")
        for c in setting.candidates
        if c.grid > longest
    ]
    setting = replace(setting, candidates=[c for c in setting.candidates if c.grid <= longest])
    price = price_of(pictures, judge, limits)
    chosen, shares = chosen_of(setting, judge, price)
    sites = [
        RepairedSite(c.name, "left", "it makes little of the pattern", shares.get(c.name))
        for c in setting.candidates
        if c not in chosen
    ] + coarse
    best = best_of_rounds(setting, chosen, judge, price, held, pictures, bar)
    if not best.values:
        sites = [RepairedSite(c.name, "left", best.why, shares.get(c.name)) for c in chosen] + sites
        return Refit(report=_report(setting, sites, judge, judge.before, pictures, pictures, given, notes))
    changed = {c.name for c in setting.candidates if not best.values.keys().isdisjoint(c.weights)}
    sites = [
        RepairedSite(c.name, "repaired", share=shares.get(c.name))
        if c.name in changed
        else RepairedSite(c.name, "left", "the last layer's new weights were enough", shares.get(c.name))
        for c in setting.candidates
        if c in chosen or c.name in changed
    ] + [site for site in sites if site.name not in changed]
    with replaced(runner.model, best.values):
        last = pictures_with(runner, held)
    return Refit(best.values, _report(setting, sites, judge, best.levels, pictures, last, given, notes))


def price_of(pictures: list[Tensor], judge: Judge, limits: RepairLimits) -> Price:
    """v(f) from the spectrum of the pictures, and the bins away from what is to fall."""
    window = judge.windows.whole
    spectrum = mean_power_nd(pictures, window)
    value = (spectrum / spectrum.max()).clamp_min(1e-6) ** -limits.whitening
    far = torch.ones(window, dtype=torch.bool)
    for f in {f for _, f in judge.wanted}:
        reach = min(1 / 16, 1 / (4 * judge.windows.own_period(f)))
        for sign in (1, -1):
            off = [((v - sign * w + 0.5) % 1 - 0.5).abs() for v, w in zip(grid(window), f, strict=True)]
            far &= reduce(torch.maximum, off) > reach
    return Price((value / value.mean()).float(), far, judge.windows)


def _report(
    setting: Setting,
    sites: list[RepairedSite],
    judge: Judge,
    after: ArtifactLevels,
    first: list[Tensor],
    last: list[Tensor],
    given: int,
    notes: list[str],
) -> RepairReport:
    """Of so many batches as were given; the rest are enlarged parts."""
    before, content, changed = judge.before, None, last is not first
    if given < len(first):
        first, last = first[:given], last[:given]
        before = judge.levels(first)
        after = judge.levels(last) if changed else before
    if changed:
        peak = max(p.max().item() for p in first) - min(p.min().item() for p in first)
        content = content_change(first, last, peak, judge.windows.whole, judge.windows.period)
    return RepairReport(
        sites,
        _named(judge, before, before),
        _named(judge, before, after),
        psnr(first, last) if changed else math.inf,
        content,
        samples=sum(map(len, first)),
        notes=notes,
        made={1: "waveforms", 2: "pictures", 3: "volumes"}[judge.windows.axes],
    )


def _named(judge: Judge, before: ArtifactLevels, levels: ArtifactLevels) -> dict[str, dict[str, float]]:
    named: dict[str, dict[str, float]] = {}
    for (form, f), power in levels.power.items():
        level = decibels(power / before.natural[form, f])
        named.setdefault(judge.windows.name(form), {})[frequency_name(f)] = level
    return named
