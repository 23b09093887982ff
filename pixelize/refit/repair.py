"""Take the checkerboard out of a trained model without training: ``pixelize.repair(model, data)``.

Up-samplers that leave a pattern in the model's pictures are refitted together: the least change of the
pictures that brings the power at the artifact's frequencies down to its neighbourhood's level
(:mod:`pixelize.refit.least_change`). No labels, no learning rate, and the same layers as before: nothing gets
slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pixelize.conversion.convert import convert
from pixelize.errors import ArgumentError
from pixelize.inheritance.record import keep_repair
from pixelize.measure.checkerboard import GLOBAL, WINDOWED, Frequency, frequency_name, window_sizes
from pixelize.measure.content import content_change
from pixelize.measure.decibels import decibels, psnr
from pixelize.measure.natural import ArtifactLevels, artifact_levels, prominence
from pixelize.measure.notch import clean_target, notch
from pixelize.measure.spectrum import mean_power
from pixelize.refit.equal_phases import equalised
from pixelize.refit.least_change import LeastChange
from pixelize.refit.report import RepairedSite, RepairReport
from pixelize.refit.widen import refittable, replace_module, widened, with_weight
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.batches import Chunks, samples_of, selected
from pixelize.running.models import copy_model
from pixelize.running.pictures import NoPicture, calls, picture_of, run, without_pattern
from pixelize.running.progress import progress_bar

LAYERS = ("dcl", "3x3", "5x5", "ipixeldcl")
CLEAN = 1.0
"""Decibels over the natural level that are left alone, beside twice the standard error of the measure."""
HELD = 256
"""Samples held back at most, to judge by."""
PORTION = 192
"""Samples that one round of the fit sees."""
_ROUNDS = 12
_GAIN = 0.95
"""What a round must bring the cost down to, to be worth its change of the pictures."""
_PATIENCE = 2
"""Rounds without an improvement after which the fit ends."""
_LOOKED = 64
"""Samples from which the fit learns what a layer reads."""
_NOTHING = "no ConvTranspose2d that could be refitted was run"
_DEAR = 4.0
"""A refit may change the pictures by so many times what :func:`~pixelize.measure.notch.clean_target`
changes, no
more: what goes beyond is no pattern."""
_SAFE = 0.98
"""Of the way to the largest change allowed: pictures are nearly linear in the weights, not quite."""
_FAILURE = 10.0
"""A picture with more than so many times the usual prominence at a frequency is not counted: the generator
failed."""
_AIM = {GLOBAL: 0.1, WINDOWED: 0.0}
"""Decibels over the natural level that a refit aims at."""
_FALL = {GLOBAL: 20.0, WINDOWED: 2.0}
"""Decibels by which the level around a pattern is believed to fall with it: what spreads from the pattern."""
_FINE = 0.3
_HOLE = 3.0
"""Decibels under the level aimed at, or under what was there before, that a repair should not go."""
_SHARE = 0.5
"""Decibels of the cost that an up-sampler must account for where others share its frequencies."""
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
    """The same model with the checkerboard of its up-samplers taken out; see :func:`repair_report`.

    With ``data``, the up-samplers whose pattern shows in the pictures are found and refitted together,
    whatever
    follows them. One chunk of samples in four is held back: on these, every level is measured, and a refit
    that makes any frequency worse, does not improve, or changes the pictures by more than the pattern is
    taken back. A model with nothing to repair comes back as it was, to the bit. 256 samples and more are
    worth it: with fewer the fit learns these pictures' patterns and not the model's.

    Without ``data``, only the last up-sampler can be helped: its phases are made to answer a constant
    alike. That is refused (the model comes back as it was, the report says why) where it would change the
    layer much.

    Args:
        model: any model whose output holds a picture: a tensor (N, C, H, W) or (N, H, W), bare or in a
            tuple, list, mapping or dataclass. A model that a library's adapter runs in a way of its own (a
            diffusers autoencoder by its decoder) is run in that way.
        data: inputs, without labels: an iterable of batches (a tensor, a tuple of positional or a mapping
            of keyword arguments each), or one tensor of inputs. It is read in portions, as often as need be;
            256 samples held back and 256 in use are all that is kept. (An iterator, which can be read but
            once, is kept whole.)
        layer: "dcl" refits the layer's own taps; "3x3" and "5x5" widen the window of each phase first;
            "ipixeldcl" converts the layers first and fits dependency kernels as well.
        example_inputs: one batch; without ``data`` it tells the last up-sampler by its call.
        inplace: change ``model`` itself and not a copy.
        progress: show a progress bar on standard error.

    Raises:
        ArgumentError: an unknown ``layer``; no data in ``data``, or too little to hold anything back, or
            pictures of several sizes.
    """
    if layer not in LAYERS:
        raise ArgumentError(f"layer={layer!r}: repair knows {', '.join(map(repr, LAYERS))}")
    started = time.perf_counter()
    result = model if inplace else copy_model(model)
    with (
        progress_bar(progress) as bar,
        evaluation(result),
    ):
        if data is None:
            found = _repair_without_data(result, example_inputs)
        else:
            found = _Repair(result, Chunks(data), layer, bar).run()
    found.__dict__["seconds"] = time.perf_counter() - started
    keep_repair(result, found)
    return result


class _Repair:
    """One model on its way: what is held back, the levels before, the up-samplers."""

    def __init__(self, model: nn.Module, data: Iterable[Any], layer: str, bar: Any) -> None:
        self.model, self.data, self.layer, self.bar = model, data, layer, bar
        half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
        self.work = copy_model(model).float() if half else model
        self.cast = _to_float if half else lambda inputs: inputs
        self.sites: list[RepairedSite] = []
        self.notes: list[str] = []

    def run(self) -> RepairReport:
        self.held, self.held_at, held, rest, chunks = [], set(), 0, 0, 0
        for chunk in self.data:
            if chunks % 4 == 0 and held < HELD:
                self.held.append(self.cast(chunk))
                self.held_at.add(chunks)
                held += samples_of(chunk)
            else:
                rest += samples_of(chunk)
            chunks += 1
        if not rest:
            raise ArgumentError("repair needs two samples at least: some are held back to judge by")
        self.portion = -(-(chunks - len(self.held)) // max(1, rest // PORTION))
        candidates = self._candidates()
        if not candidates:
            return RepairReport(self.sites, notes=self.notes)
        self._set_failures_aside()
        self.spare = CLEAN + 2 * 4.34 / math.sqrt(sum(map(samples_of, self.held)))
        pictures = self._pictures()
        before = self._levels(pictures)
        self.natural = before.natural
        guilty = self._guilty(candidates, before)
        after = self._refit(guilty, before, pictures) if guilty else before
        return self._report(before, after, pictures)

    def _candidates(self) -> list[str]:
        """Up-samplers that can be refitted, the last called first; sets the size of the pictures and the
        period."""
        layers = _up_samplers(self.work)
        try:
            order, seen = calls(self.work, layers, self.held[0])
        except NoPicture:
            self.notes.append("the model's output holds no picture")
            return []
        found: list[str] = []
        self.brought_in: dict[str, tuple[tuple[int, int], int]] = {}
        for name in dict.fromkeys(reversed(order)):
            made, picture, layer = seen[name].made, seen[name].picture, layers[name]
            self.size = (picture.shape[-2], picture.shape[-1])
            scale = round(picture.shape[-2] / made.shape[-2])
            period = scale * math.lcm(*layer.stride)
            reason = refittable(layer)
            if not reason and tuple(picture.shape[-2:]) != (scale * made.shape[-2], scale * made.shape[-1]):
                reason = "the picture is no whole multiple of its output"
            if not reason and min(self.size) < 8 * period:
                reason = f"the pictures are smaller than 8 periods of {period} pixels"
            # patterns longer than two up-samplings are rarely seen, and their frequencies are many
            if not reason and period > max(4, max(layer.stride)):
                reason = f"a pattern of {period} pixels is too long to be told from the picture"
            if reason:
                self.sites.append(RepairedSite(name, "skipped", reason))
                continue
            found.append(name)
            self.brought_in[name] = (layer.stride[0], layer.stride[1]), scale
        if not found:
            self.notes.append(_NOTHING)
        self.period = math.lcm(*(scale * math.lcm(*stride) for stride, scale in self.brought_in.values()))
        return found

    def _brings_in(self, name: str, f: Frequency) -> bool:
        """Whether a layer's phases make a pattern at f out of a constant: a multiple of 1 /
        (its stride times the scale of what follows) that is none of 1/scale."""
        stride, scale = self.brought_in[name]
        turns = [Fraction(v).limit_denominator(self.period) * scale for v in f]
        return all((v * s).denominator == 1 for v, s in zip(turns, stride, strict=True)) and any(
            v.denominator != 1 for v in turns
        )

    def _guilty(self, candidates: list[str], before: ArtifactLevels) -> list[str]:
        """Those that bring in a frequency that stands out; of several that bring in the same, those without
        whose pattern the cost falls."""
        excess = {f for (kind, f) in before.power if self._excess(before, (kind, f)) > self.spare}
        guilty = []
        for name in candidates:
            own = {f for f in excess if self._brings_in(name, f)}
            others = [n for n in candidates if n != name and any(self._brings_in(n, f) for f in own)]
            share = self._share(name, before) if own else None
            if not own:
                reason = "the pictures show no pattern of its own"
            elif others and (share or 0.0) <= _SHARE:
                reason = "without its pattern the pictures show no less"
            else:
                guilty.append(name)
                continue
            self.sites.append(RepairedSite(name, "left", reason, share))
        return guilty

    def _set_failures_aside(self) -> None:
        """Leave out held-back pictures that have far more of a pattern than the others."""
        found = [self._prominence(picture) for picture in self._pictures()]
        usual = torch.cat(found).median(0).values
        self.failure = _FAILURE * usual if sum(map(len, found)) >= 16 else torch.full_like(usual, math.inf)
        self.held = [self._sound(chunk, own) for chunk, own in zip(self.held, found, strict=True)]
        self.held = [chunk for chunk in self.held if samples_of(chunk)]

    def _prominence(self, picture: Tensor) -> Tensor:
        return prominence(picture, self.period)

    def _sound(self, chunk: Any, own: Tensor) -> Any:
        """The samples of a chunk that did not fail."""
        size = samples_of(chunk)
        good = (own <= self.failure).all(1).nonzero().flatten()
        return chunk if len(own) != size or len(good) == size else selected(chunk, good, size)

    def _pictures(self) -> list[Tensor]:
        """Of what is held back."""
        return [self._picture(inputs).float().cpu() for inputs in self.held]

    def _picture(self, inputs: Any) -> Tensor:
        picture = picture_of(run(self.work, inputs))
        if picture.shape[-2:] != self.size:
            raise ArgumentError(f"the data must give pictures of one size: {self.size} and another were seen")
        return picture

    def _levels(self, pictures: Iterable[Tensor]) -> ArtifactLevels:
        return artifact_levels(pictures, self.period)

    def _excess(self, levels: ArtifactLevels, c: tuple[str, Frequency]) -> float:
        return decibels(levels.power[c] / self.natural[c])

    def _share(self, name: str, before: ArtifactLevels) -> float:
        """Decibels by which the cost falls when this up-sampler's pattern is notched out of its own
        output."""
        layer, stride = self.work.get_submodule(name), self.brought_in[name][0]
        period = math.lcm(*stride)
        depth = dict.fromkeys(((j / period, i / period) for j in range(period) for i in range(period)), 1.0)
        pictures = (
            without_pattern(self.work, layer, inputs, lambda y: notch(y.float(), period, depth=depth).to(y))
            .float()
            .cpu()
            for inputs in self.held
        )
        without = self._levels(pictures)
        return before.cost(self.natural, self.spare) - without.cost(self.natural, self.spare)

    def _portions(self) -> Iterator[tuple[list[Any], list[Tensor]]]:
        """The data that is not held back, over and over, in portions: inputs and the pictures they gave."""
        while True:
            rest = (self.cast(c) for n, c in enumerate(self.data) if n not in self.held_at)
            while portion := list(islice(rest, self.portion)):
                before = [self._picture(inputs) for inputs in portion]
                sound = [
                    self._sound(c, self._prominence(p.float().cpu()))
                    for c, p in zip(portion, before, strict=True)
                ]
                again = [n for n, c in enumerate(sound) if c is not portion[n] and samples_of(c)]
                before = [self._picture(sound[n]) if n in again else p for n, p in enumerate(before)]
                kept = [n for n, c in enumerate(sound) if samples_of(c)]
                yield [sound[n] for n in kept], [before[n] for n in kept]

    def _refit(self, guilty: list[str], before: ArtifactLevels, pictures: list[Tensor]) -> ArtifactLevels:
        """Round after round, as long as the levels come down; keeps the best round, if there is one."""
        trial = self._trial(guilty)
        enough = -(-_LOOKED // samples_of(self.held[0]))
        window = window_sizes(*self.size, self.period)
        height, width = window[GLOBAL]
        spectrum = mean_power(picture[..., :height, :width] for picture in pictures)
        value = (spectrum / spectrum.max()).clamp_min(1e-6) ** -_WHITENING
        fit = LeastChange(
            trial, guilty, self.held[:enough], self.period, window, (value / value.mean()).float()
        )
        most = _DEAR * _mean_square([clean_target(p, self.period) for p in pictures], pictures)
        over = {c: 10 ** (self._over(before, c) / 10) for c in before.power}
        best, values, spent, cost, idle = before, fit.averaged(), 0.0, self._cost(before, before), 0
        task = self.bar.add_task(f"refitting {', '.join(guilty)}", total=_ROUNDS)
        for portion, was in islice(self._portions(), _ROUNDS):
            fit.solve(portion, was, over)
            new = fit.averaged()
            now, change = self._tried(fit, new, pictures)
            if too_far := change > most:  # part of the way from the best: a norm is convex
                share = (math.sqrt(most) - math.sqrt(spent)) / (math.sqrt(change) - math.sqrt(spent))
                share *= _SAFE
                new = {name: values[name].lerp(value, share) for name, value in new.items()}
                now, change = self._tried(fit, new, pictures)
            levels = self._levels(now)
            self.bar.advance(task)
            price = self._cost(levels, before)
            if change <= most and price < _GAIN * cost and not self._worse(before, levels):
                best, values, spent, cost, idle = levels, new, change, price, 0
            else:
                idle += 1
            if cost == 0 or idle > _PATIENCE or too_far:
                break
            over = {c: 10 ** (self._over(levels, c) / 10) for c in levels.power}
        self.bar.remove_task(task)
        if best is before:
            reason = (
                "no refit was better at one frequency, worse at none, and close to the pictures as they are"
            )
            self.sites.extend(RepairedSite(name, "left", reason) for name in guilty)
            return before
        with torch.no_grad():
            for name, value in values.items():
                trial.get_parameter(name).copy_(value)
        for name in guilty:
            _put_in(self.model, name, trial.get_submodule(name))
            self.sites.append(RepairedSite(name, "repaired"))
        return best

    def _tried(
        self, fit: LeastChange, values: Mapping[str, Tensor], pictures: list[Tensor]
    ) -> tuple[list[Tensor], float]:
        """The pictures of what is held back with other weights, and the mean square of their change."""
        with torch.no_grad():
            now = [fit.picture(inputs, values).float().cpu() for inputs in self.held]
        return now, _mean_square(now, pictures)

    def _trial(self, guilty: list[str]) -> nn.Module:
        """A copy of the model with the layers to fit in place."""
        trial = copy_model(self.work)
        for name in guilty:
            plain = with_weight(_layer(trial, name), _layer(trial, name).weight)
            if self.layer in ("3x3", "5x5"):
                plain = widened(plain, int(self.layer[0]))
            replace_module(trial, name, plain)
        if self.layer == "ipixeldcl":
            convert(trial, include=guilty, example_inputs=self.held[0], inplace=True)
        return trial.eval()

    def _over(self, levels: ArtifactLevels, c: tuple[str, Frequency]) -> float:
        """Decibels over the level aimed at: over what was natural before, or over what is now, if that is
        less. (What lies around a pattern is part of it and falls with it; up to ``_FALL`` dB are
        believed.)"""
        natural = max(min(self.natural[c], levels.natural[c]), self.natural[c] * 10 ** (-_FALL[c[0]] / 10))
        return decibels(levels.power[c] / natural) - _AIM[c[0]]

    def _cost(self, levels: ArtifactLevels, before: ArtifactLevels) -> float:
        """Decibels over the levels aimed at, summed, a fraction of one each left out; and those of holes."""
        over = {c: self._over(levels, c) for c in levels.power}
        holes = (min(0.0, self._over(before, c)) - v - _HOLE for c, v in over.items())
        return sum(max(0.0, v - _FINE) for v in over.values()) + sum(max(0.0, v) for v in holes)

    def _worse(self, now: ArtifactLevels, then: ArtifactLevels) -> bool:
        """Whether a frequency stands out more than it did, and not because what is around it fell."""
        return any(
            then.excess[c] > max(self.spare, now.excess[c] + 0.3) and then.power[c] > now.power[c]
            for c in now.power
        )

    def _report(self, before: ArtifactLevels, after: ArtifactLevels, first: list[Tensor]) -> RepairReport:
        fidelity, content = math.inf, None
        if any(site.status == "repaired" for site in self.sites):
            if self.work is not self.model:
                self.work = copy_model(self.model).float()
            last = self._pictures()
            fidelity = psnr(first, last)
            peak = max(p.max().item() for p in first) - min(p.min().item() for p in first)
            window = window_sizes(*self.size, self.period)[GLOBAL]
            content = content_change(first, last, peak, window, self.period)
        samples = sum(map(samples_of, self.held))
        return RepairReport(
            self.sites,
            self._named(before),
            self._named(after),
            fidelity,
            content,
            samples=samples,
            notes=self.notes,
        )

    def _named(self, levels: ArtifactLevels) -> dict[str, dict[str, float]]:
        named: dict[str, dict[str, float]] = {}
        for (form, f), power in levels.power.items():
            named.setdefault(form, {})[frequency_name(f)] = decibels(power / self.natural[form, f])
        return named


def _put_in(model: nn.Module, name: str, fitted: nn.Module) -> None:
    """The fitted layer's weight in the model's own layer where it fits there, else the fitted layer
    itself.
    """
    layer = model.get_submodule(name)
    plain = type(layer) is type(fitted) and not is_parametrized(layer)
    if plain and all(
        a.shape == b.shape for a, b in zip(layer.parameters(), fitted.parameters(), strict=True)
    ):
        layer.load_state_dict(fitted.state_dict())
        return
    kept = next(layer.parameters())
    fitted.requires_grad_(kept.requires_grad)
    replace_module(model, name, fitted.to(kept.device, kept.dtype).train(layer.training))


def _to_float(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
    if isinstance(inputs, Mapping):
        return {k: _to_float(v) for k, v in inputs.items()}
    return tuple(map(_to_float, inputs)) if isinstance(inputs, tuple | list) else inputs


def _layer(model: nn.Module, name: str) -> nn.ConvTranspose2d:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.ConvTranspose2d)
    return layer


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
