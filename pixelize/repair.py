"""Take the checkerboard out of a trained model without training: ``pixelize.repair(model, data)``.

Up-samplers that leave a pattern in the model's pictures are refitted in closed form
(:mod:`pixelize.refit`): the least change of the pictures that brings the power at the artifact's
frequencies down to its neighbourhood's level. No labels, no gradient steps, and the same layers as before:
nothing gets slower.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from pixelize.adapters import call
from pixelize.checkerboard import frequencies as checkerboard_frequencies
from pixelize.chunks import Chunks, samples_of, selected
from pixelize.constant_response import equalised
from pixelize.errors import ArgumentError
from pixelize.layer_swap import refittable, replace_module, swapped, unknowns, widened, with_weight
from pixelize.levels import Levels, decibels, measure, prominence
from pixelize.notch import notch
from pixelize.refit import Constraint, Refit
from pixelize.repair_report import RepairedSite, RepairReport
from pixelize.running import evaluation
from pixelize.spectrum import GLOBAL, LOCAL, Frequency, Spectrum, window_sizes
from pixelize.tail import NoPicture, calls, is_elementwise, pass_through, pictures_of, without_pattern

CLEAN = 1.0
"""Decibels over the natural level that are left alone, beside twice the standard error of the measure."""
HELD = 256
"""Samples held back at most, to judge by."""
_UNKNOWNS = 4608
_NOTHING = "no ConvTranspose2d that could be refitted was run"
_ROUNDS = 3
_DEAR = 1.0
"""A refit may change the pictures by so many times the power in a band around the artifact's frequencies,
no more: what goes beyond is no pattern."""
_FAILURE = 10.0
"""A picture with more than so many times the usual prominence at a frequency is not counted: the generator
failed."""
_AIM = {GLOBAL: 0.9, LOCAL: 0.0}
"""Decibels over the natural level that a refit aims at."""
_FALL = {GLOBAL: 1.5, LOCAL: 0.0}
_FINE = 0.3
_WHITENING = 0.5
"""How much more a change counts where there is little power: 0 for least squares in pixels, 1 for a
relative change."""


def repair(
    model: nn.Module,
    data: Iterable[Any] | Tensor | None = None,
    *,
    layer: str = "dcl",
    example_inputs: Any = None,
    inplace: bool = False,
    progress: bool = True,
) -> nn.Module:
    """The same model with the checkerboard of its up-samplers taken out, in closed form; see
    :func:`repair_report`.

    With ``data``, the up-samplers (``nn.ConvTranspose2d`` with a stride) are found whose own pattern shows
    in the pictures, and are refitted one after the other on streamed sums, whose memory does not depend on
    the amount of data. One chunk of samples in four is held back: on these, every level is measured, and a
    refit that makes any frequency worse or does not improve is taken back. A model with nothing to repair
    comes back as it was, to the bit.

    Without ``data``, only the last up-sampler can be helped: its phases are made to answer a constant
    alike. That is refused (the model comes back as it was, the report says why) where it would change the
    layer much.

    Args:
        model: any model whose output holds a picture: a tensor (N, C, H, W) or (N, H, W), bare or in a
            tuple, list, mapping or dataclass.
        data: inputs, without labels: an iterable of batches (a tensor, a tuple of positional or a mapping
            of keyword arguments each), or one tensor of inputs. It is gone through once for each up-sampler
            that is refitted.
        layer: "dcl" refits the layer's own taps; "wide" gives each phase one more row and column of taps on
        each side.
        example_inputs: one batch; without ``data`` it tells the last up-sampler by its call.
        inplace: change ``model`` itself and not a copy.
        progress: show a progress bar on standard error.

    Raises:
        ArgumentError: an unknown ``layer``, or no data in ``data``, or too little to hold anything back.
    """
    if layer not in ("dcl", "wide"):
        raise ArgumentError(f"layer={layer!r}: repair knows 'dcl' and 'wide'")
    started = time.perf_counter()
    result = model if inplace else copy.deepcopy(model)
    training = {name: m.training for name, m in result.named_modules()}
    with (
        Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar,
        evaluation(result),
    ):
        if data is None:
            found = _repair_without_data(result, example_inputs)
        else:
            found = _Repair(result, Chunks(data), layer, bar).run()
    for name, flag in training.items():
        result.get_submodule(name).training = flag
    found.__dict__["seconds"] = time.perf_counter() - started
    result.__dict__["_pixelize_repair"] = found
    return result


class _Repair:
    """One model on its way: what is held back, the levels before, the up-samplers."""

    def __init__(self, model: nn.Module, data: Iterable[Any], layer: str, bar: Progress) -> None:
        self.model, self.data, self.layer, self.bar = model, data, layer, bar
        self.sites: list[RepairedSite] = []
        self.notes: list[str] = []

    def run(self) -> RepairReport:
        chunks, self.held, count = 0, [], 0
        for chunk in self.data:
            if chunks % 4 == 0 and count < HELD:
                self.held.append(chunk)
                count += samples_of(chunk)
            chunks += 1
        if chunks < 2:
            raise ArgumentError("repair needs two samples at least: some are held back to judge by")
        candidates = self._candidates()
        if candidates is None:
            return self._report(None, None)
        self._set_failures_aside()
        first = self._pictures()
        before = self._levels(first)
        self.natural = before.natural
        self.spare = CLEAN + 2 * 4.34 / math.sqrt(count)
        now = before
        shares = {name: self._share(name, before) for name in candidates}
        guilty = sorted((n for n in candidates if shares[n] > 0.5), key=lambda n: -shares[n])
        for name in candidates:
            if name not in guilty:
                self.sites.append(
                    RepairedSite(name, "left", "the pictures show no pattern of its own", shares[name])
                )
        for name in guilty:
            if now.cost(self.natural, self.spare) == 0:
                self.sites.append(RepairedSite(name, "left", "the pictures are clean", shares[name]))
                continue
            better, reason = self._refit(name, now)
            status = "left" if better is None else "repaired"
            self.sites.append(RepairedSite(name, status, reason, shares[name]))
            now = better or now
        return self._report(before, now, first, count)

    def _candidates(self) -> list[str] | None:
        """Up-samplers that can be refitted, the last called first; sets the size of the pictures and the
        period."""
        layers = _up_samplers(self.model)
        try:
            order, seen = calls(self.model, layers, self.held[0])
        except NoPicture:
            self.notes.append("the model's output holds no picture")
            return None
        if not seen:
            self.notes.append(_NOTHING)
            return None
        picture = next(iter(seen.values())).picture
        self.period = 1
        found: list[str] = []
        for name in reversed(order):
            made, layer = seen[name].made, layers[name]
            scale = picture.shape[-2] / made.shape[-2]
            period = round(scale) * layer.stride[0]
            reason = refittable(layer)
            if not reason and order.count(name) > 1:
                reason = "it is called more than once"
            if not reason and (scale != round(scale) or picture.shape[-1] != scale * made.shape[-1]):
                reason = "the picture is no whole multiple of its output"
            if not reason and min(picture.shape[-2:]) < 8 * period:
                reason = f"the pictures are smaller than 8 periods of {period} pixels"
            if reason:
                if not any(site.name == name for site in self.sites):
                    self.sites.append(RepairedSite(name, "skipped", reason))
                continue
            found.append(name)
            # patterns longer than two up-samplings are rarely seen, and their frequencies are many
            if math.lcm(self.period, period) <= max(4, layer.stride[0] ** 2):
                self.period = math.lcm(self.period, period)
        if not found:
            self.notes.append(_NOTHING)
            return None
        self.scales = {n: round(picture.shape[-2] / seen[n].made.shape[-2]) for n in found}
        self.size = (picture.shape[-2], picture.shape[-1])
        if self.period == 1:
            self.period = min(self.scales[n] * self._layer(n).stride[0] for n in found)
        return found

    def _set_failures_aside(self) -> None:
        """Leave out held-back pictures that have far more of a pattern than the others."""
        window = window_sizes(*self.size, self.period)[GLOBAL]
        found = [prominence(picture, window, self.period) for picture in self._pictures()]
        usual = torch.cat(found).median(0).values
        self.failure = _FAILURE * usual if sum(map(len, found)) >= 16 else torch.full_like(usual, math.inf)
        self.held = [self._sound(chunk, own) for chunk, own in zip(self.held, found, strict=True)]
        self.held = [chunk for chunk in self.held if samples_of(chunk)]

    def _sound(self, chunk: Any, own: Tensor) -> Any:
        """The samples of a chunk that did not fail."""
        size = samples_of(chunk)
        good = (own <= self.failure).all(1).nonzero().flatten()
        return chunk if len(own) != size or len(good) == size else selected(chunk, good, size)

    def _layer(self, name: str) -> nn.ConvTranspose2d:
        layer = self.model.get_submodule(name)
        assert isinstance(layer, nn.ConvTranspose2d)
        return layer

    def _pictures(self) -> list[Tensor]:
        pictures = [pictures_of(call(self.model, inputs)) for inputs in self.held]
        return [p.float().cpu() for p in pictures if p is not None]

    def _levels(self, pictures: Iterable[Tensor]) -> Levels:
        return measure(pictures, window_sizes(*self.size, self.period), self.period)

    def _share(self, name: str, before: Levels) -> float:
        """Decibels by which the cost falls when this up-sampler's pattern is notched out of its own
        output."""
        layer = self._layer(name)
        stride = layer.stride[0]
        depth = dict.fromkeys(((j / stride, i / stride) for j in range(stride) for i in range(stride)), 1.0)
        pictures = (
            without_pattern(self.model, layer, inputs, lambda y: notch(y.float(), stride, depth=depth).to(y))
            .float()
            .cpu()
            for inputs in self.held
        )
        without = self._levels(pictures)
        return before.cost(before.natural, self.spare) - without.cost(before.natural, self.spare)

    def _refit(self, name: str, now: Levels) -> tuple[Levels | None, str]:
        """Tries the multiples of the layer's own stride, which change the pictures least, then all that
        its up-samplers together leave."""
        better, reason = None, ""
        for period in dict.fromkeys((self._layer(name).stride[0], self.period)):
            better, reason = self._refit_at(name, now, period)
            if better is not None:
                break
        return better, reason

    def _refit_at(self, name: str, now: Levels, period: int) -> tuple[Levels | None, str]:
        layer = self._layer(name)
        plain = widened(layer) if self.layer == "wide" else copy.deepcopy(layer)
        if unknowns(plain) > _UNKNOWNS:
            return None, "it has too many taps for a closed form"
        direct = self.scales[name] == 1 and is_elementwise(self.model, layer, self.held[0])
        if not direct and period != layer.stride[0]:
            return None, "its own output shows the multiples of its stride alone"
        task = self.bar.add_task(f"refitting {name}", total=None)
        sums, natural, own = self._sums(plain, layer, direct, period, task)
        best, best_levels, best_cost = None, None, self._cost(now)
        goal = {c: level * 10 ** (_AIM[c[0]] / 10) for c, level in natural.items()}
        first = {c: goal[c] if own[c] > 1.1 * goal[c] else 1.05 * own[c] for c in goal}
        aim, start = dict(first), None
        pictures_now = self._pictures()
        every = dict.fromkeys(checkerboard_frequencies(self.period), 1.0)
        notched = [notch(picture, self.period, depth=every) for picture in pictures_now]
        allowed = _DEAR * _mean_square(notched, pictures_now)
        for _ in range(_ROUNDS):
            solution = sums.solve([Constraint(*c, aim[c]) for c in aim], start=start)
            start = solution.multipliers
            with swapped(self.model, name, with_weight(plain, solution.weight)):
                pictures = self._pictures()
            if _mean_square(pictures, pictures_now) > allowed:  # too dear: go half the way, in decibels
                aim = {c: math.sqrt(aim[c] * max(own[c], aim[c])) for c in aim}
                first, start = dict(aim), None
                continue
            levels = self._levels(pictures)
            cost = self._cost(levels)
            if cost < best_cost and not self._worse(now, levels):
                best, best_levels, best_cost = solution.weight, levels, cost
            if best_cost == 0:
                break
            for c, m in zip(aim, solution.multipliers, strict=True):
                over = max(10 ** (self._over(levels, k) / 10) for k in self._seen_as(c, period, name))
                if m > 0 or over > 1.05:
                    aim[c] = min(aim[c] * min(max(over, 0.3), 3.0) ** -0.8, 1.1 * first[c])
        self.bar.remove_task(task)
        if best is None:
            return (
                None,
                "no refit was better at one frequency, worse at none, and close to the pictures as they are",
            )
        replace_module(self.model, name, with_weight(plain, best))
        return best_levels, ""

    def _over(self, levels: Levels, c: tuple[str, Frequency]) -> float:
        """Decibels over the level aimed at: over what was natural before, or over what is now, if that is
        less. (What lies around a pattern is part of it and falls with it; up to ``_FALL`` dB are
        believed.)"""
        natural = max(min(self.natural[c], levels.natural[c]), self.natural[c] * 10 ** (-_FALL[c[0]] / 10))
        return decibels(levels.power[c] / natural) - _AIM[c[0]]

    def _cost(self, levels: Levels) -> float:
        """Decibels over the levels aimed at, summed, a fraction of one each left out."""
        return sum(max(0.0, self._over(levels, c) - _FINE) for c in levels.power)

    def _seen_as(
        self, constraint: tuple[str, Frequency], period: int, name: str
    ) -> list[tuple[str, Frequency]]:
        """Where a frequency of a layer's output, a multiple of 1/period, shows in the pictures: those that
        fold to it on the layer's coarser grid."""
        kind, f = constraint
        scale = self.scales[name]
        return [
            (k, g)
            for k, g in self.natural
            if k == kind
            and any(
                all(
                    (sign * g[n] * scale * period - f[n] * self.period) % (self.period * period) == 0
                    for n in (0, 1)
                )
                for sign in (1, -1)
            )
        ]

    def _sums(
        self, plain: nn.ConvTranspose2d, layer: nn.ConvTranspose2d, direct: bool, period: int, task: Any
    ) -> tuple[Refit, dict[tuple[str, Frequency], float], dict[tuple[str, Frequency], float]]:
        """The normal equations over all data that is not held back; the levels to reach, and those there
        are."""
        samples = [pass_through(self.model, layer, inputs) for inputs in self.held]
        made = [(p.picture if direct else p.made).float().cpu() for p in samples]
        windows = window_sizes(made[0].shape[-2], made[0].shape[-1], period)
        scale = (
            None
            if direct
            else torch.cat([m.transpose(0, 1).flatten(1) for m in made], 1).std(1).clamp_min(1e-6)
        )
        levels = measure(made, windows, period, scale)
        spectrum = Spectrum(windows[LOCAL], LOCAL, scale)
        for m in made:
            spectrum.add(m)
        value = (spectrum.power / spectrum.power.max()).clamp_min(1e-6) ** -_WHITENING
        weights = None if scale is None else scale**-2
        sums = Refit(plain, period, windows, value, sloped=direct, weights=weights)
        window = window_sizes(*self.size, self.period)[GLOBAL]
        for n, chunk in enumerate(self.data):
            if n % 4 or n // 4 >= len(self.held):
                picture = pass_through(self.model, layer, chunk).picture.float().cpu()
                chunk = self._sound(chunk, prominence(picture, window, self.period))
                if not samples_of(chunk):
                    continue
                p = pass_through(self.model, layer, chunk, sloped=direct)
                y = p.picture if direct else p.made
                sums.add(
                    p.x.float().cpu(), y.float().cpu(), None if p.slope is None else p.slope.float().cpu()
                )
            self.bar.advance(task)
        return sums, levels.natural, levels.power

    def _worse(self, now: Levels, then: Levels) -> bool:
        """Whether a frequency stands out more than it did, and not because what is around it fell."""
        return any(
            then.excess[c] > max(self.spare, now.excess[c] + 0.3) and then.power[c] > now.power[c]
            for c in now.power
        )

    def _report(
        self, before: Levels | None, after: Levels | None, first: list[Tensor] | None = None, count: int = 0
    ) -> RepairReport:
        if before is None or after is None or first is None:
            return RepairReport(self.sites, notes=self.notes)
        error = total = 0.0
        low, high = math.inf, -math.inf
        for a, b in zip(first, self._pictures(), strict=True):
            error += (a - b).double().square().sum().item()
            total += a.numel()
            low, high = min(low, a.min().item()), max(high, a.max().item())
        psnr = math.inf if error == 0 else 10 * math.log10((high - low) ** 2 * total / error)
        return RepairReport(
            self.sites, self._named(before), self._named(after), psnr, samples=count, notes=self.notes
        )

    def _named(self, levels: Levels) -> dict[str, dict[str, float]]:
        named: dict[str, dict[str, float]] = {}
        for (kind, (j, i)), power in levels.power.items():
            named.setdefault(kind, {})[f"{j}/{self.period},{i}/{self.period}"] = decibels(
                power / self.natural[kind, (j, i)]
            )
        return named


def _mean_square(some: list[Tensor], others: list[Tensor]) -> float:
    """Mean square of the difference."""
    total = sum((a - b).double().square().sum().item() for a, b in zip(some, others, strict=True))
    return total / sum(a.numel() for a in some)


def _up_samplers(model: nn.Module) -> dict[str, nn.ConvTranspose2d]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose2d) and max(module.stride) > 1:
            found[name] = module
    return found


def _repair_without_data(model: nn.Module, example_inputs: Any) -> RepairReport:
    layers = _up_samplers(model)
    order = list(layers)
    if example_inputs is not None and layers:
        try:
            order = calls(model, layers, example_inputs)[0]
        except NoPicture:
            return RepairReport(notes=["the model's output holds no picture"])
    if not order:
        return RepairReport(notes=["the model has no ConvTranspose2d with a stride"])
    last = order[-1]
    sites = [
        RepairedSite(n, "left", "only the last up-sampler can be helped without data") for n in order[:-1]
    ]
    reason = refittable(layers[last])
    if not reason:
        weight, reason = equalised(layers[last])
        if not reason:
            replace_module(model, last, with_weight(layers[last], weight))
    status = "skipped" if reason else "repaired"
    return RepairReport([*sites, RepairedSite(last, status, reason)], notes=["no data: nothing was measured"])
