"""The way of one repair: find what can make a pattern, measure, choose, solve in rounds, keep the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.measure.checkerboard import frequency_name
from pixelize.measure.content import content_change
from pixelize.measure.decibels import decibels, psnr
from pixelize.measure.natural import ArtifactLevels
from pixelize.measure.spectrum import mean_power
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
    sizes = {tuple(runner([s]).shape[-2:]) for s in one_of_each_shape(taken)}
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
        found = candidates_of(calls, named_parameters(model), size, limits)
    samples = split(runner, taken, limits, found.period)
    pieces = {tuple(runner([s]).shape[-2:]) for s in one_of_each_shape(samples.fit + samples.held)}
    runner.size = (min(s[0] for s in pieces), min(s[1] for s in pieces))
    with torch.no_grad():
        calls = calls_of(model, lambda: runner([samples.fit[0]]))
    windows = Windows(runner.size, found.period)
    setting = Setting(runner, calls, found.candidates, windows, samples, limits)
    result = _refitted(setting, bar)
    return replace(result, report=replace(result.report, sites=[*result.report.sites, *sites]))


def _refitted(setting: Setting, bar: Any) -> Refit:
    limits, samples, runner = setting.limits, setting.samples, setting.runner
    held = batches_of(samples.held, limits.batch)
    pictures = pictures_with(runner, held)
    good = sound(pictures, limits)
    if not all(good):
        held = batches_of([s for s, g in zip(samples.held, good, strict=True) if g], limits.batch)
        pictures = pictures_with(runner, held)
    if all(float(p.std((-2, -1)).max()) <= 1e-6 * float(p.abs().max()) for p in pictures):
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
        return Refit(report=_report(setting, sites, judge, judge.before, pictures, pictures, notes))
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
        return Refit(report=_report(setting, sites, judge, judge.before, pictures, pictures, notes))
    sites = [RepairedSite(c.name, "repaired", share=shares.get(c.name)) for c in chosen] + sites
    with replaced(runner.model, best.values):
        last = pictures_with(runner, held)
    return Refit(best.values, _report(setting, sites, judge, best.levels, pictures, last, notes))


def price_of(pictures: list[Tensor], judge: Judge, limits: RepairLimits) -> Price:
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
        named.setdefault(form, {})[frequency_name(f)] = decibels(power / judge.before.natural[form, f])
    return named
