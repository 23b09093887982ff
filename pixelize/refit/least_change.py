"""Least change: alter some up-samplers together so that the power at given frequencies falls to given levels,
whatever follows them.

Over the weights of the chosen layers,

    minimise    sum_f v(f) E |P_f(y' - y)|^2                         (the change of the picture y)
                + sum_(f far from all j) v(f) P_f (P'_f / P_f - 1)^2  (the change of its power spectrum)
    subject to  E |c_j(y')|^2 <= t_j                                 (the power at each artifact frequency j)

where P_f(y) is the picture's Fourier transform and P_f its mean power, c_j a Hann-windowed coefficient
(:func:`pixelize.checkerboard`), and v weighs frequencies: more where the picture has little power.
What follows a layer (norms, activations, convolutions, further up-samplers, a head) is run as it is, so
the picture is no linear function of the weights, but nearly: the change is small. For given multipliers
m_j >= 0

    sum_f v(f) E |P_f(y' - y)|^2 + sum_j m_j E |c_j(y')|^2 + ridge |u|^2

is near-quadratic, and a few steps of L-BFGS over a portion of the data bring it to its least value, in
coordinates u that whiten what the layers read (:mod:`pixelize.refit.coordinates`): nothing is drawn at
random and no step size is chosen. After that each multiplier is raised or lowered by what its level, on
other data, is over or under its aim, and the next portion follows: memory does not depend on the amount
of data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pixelize.measure.checkerboard import GLOBAL, WINDOWED, Frequency
from pixelize.measure.spectrum import away
from pixelize.refit.coordinates import Coordinates, ScaledParameter, WhitenedTaps, whitenable
from pixelize.refit.prefix_cache import Replay
from pixelize.running.pictures import picture_of, run

Constraint = tuple[str, Frequency]
"""Form of the measure and frequency."""

RIDGE = 0.3
"""Price of the coordinates themselves; 1 is about what the change of the picture costs."""

_KEPT = 200.0
"""Weight of the power spectrum away from the artifact's frequencies."""
_START, _MOST = 2.0, 1e5
"""Multipliers in units of the change's price at their frequency: the first, for a level that is only just
over its aim, and the largest (a level out of reach is not forced)."""
_MORE, _CAUTION = 4.0, 0.6
"""What a multiplier is raised by in a round at most, and the power of that which is done: levels are
measured on an average over rounds, which lags."""
_EAGER = 2.0
"""The power of a level's ratio to its aim by which its multiplier falls."""
_LOCAL = 4.0
"""Local windows' multipliers count so much more: they see one window, not the picture."""
_STEPS = 7
_NEW = 0.5
"""The last round's share in the average over rounds."""
_FIRST = 3
"""Rounds on the way there, which are left out of the average."""


class LeastChange:
    """The problem for one model and some of its layers.

    Args:
        model: in evaluation mode; its parameters lose ``requires_grad``, else it is not changed.
        names: of the up-samplers to alter: ``nn.ConvTranspose2d`` or the layers of this package.
        looked: inputs to learn from what the layers read.
        period, windows: see :func:`pixelize.measure.checkerboard.window_sizes`.
        value: v(f) by bin of the global window, in its shape.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        looked: list[Any],
        period: int,
        windows: Mapping[str, tuple[int, int]],
        value: Tensor,
    ) -> None:
        self.model, self.period, self.windows, self.value = model, period, windows, value
        self.called = _Called(model)
        model.requires_grad_(False)
        self.replay = Replay(model, [model.get_submodule(name) for name in names])
        self.unknowns: dict[str, Coordinates] = {}
        for name in names:
            layer = model.get_submodule(name)
            for key, parameter in layer.named_parameters():
                if key == "bias":
                    continue
                if key == "weight" and whitenable(layer):
                    self.unknowns[f"{name}.{key}"] = WhitenedTaps(layer)
                else:
                    self.unknowns[f"{name}.{key}"] = ScaledParameter(parameter)
        self.far = away(windows[GLOBAL], period)
        self._look(looked)
        self._balance(looked[0])
        self.multipliers: dict[Constraint, float] = {}
        self.first: dict[Constraint, float] = {}
        self.means: dict[str, Tensor] = {}
        self.rounds = 0
        self.optimizer = torch.optim.LBFGS(
            [c.u for c in self.unknowns.values()],
            max_iter=_STEPS,
            max_eval=2 * _STEPS,
            history_size=30,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def _look(self, looked: list[Any]) -> None:
        whitened = [c for c in self.unknowns.values() if isinstance(c, WhitenedTaps)]
        handles = [
            c.layer.register_forward_pre_hook(lambda module, args, c=c: c.look(args[0])) for c in whitened
        ]
        try:
            with torch.no_grad():
                for inputs in looked:
                    run(self.model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        for c in self.unknowns.values():
            c.finish()

    def _balance(self, inputs: Any) -> None:
        """Lets a change of size one of any coordinate change the picture by about one in the mean square."""
        with torch.enable_grad():
            y = self.picture(inputs)
            noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
            grads = torch.autograd.grad(y, [c.u for c in self.unknowns.values()], noise, allow_unused=True)
        for c, grad in zip(self.unknowns.values(), grads, strict=True):
            c.balance(torch.zeros_like(c.u) if grad is None else grad / y.numel() ** 0.5)

    def averaged(self) -> dict[str, Tensor]:
        """The parameters on average over the last rounds, each fitted to its own portion, by qualified name;
        before the first, as they came."""
        found = {}
        with torch.no_grad():
            for name, c in self.unknowns.items():
                kept, c.u.data = c.u.data, self.means.get(name, torch.zeros_like(c.u))
                found[name], c.u.data = c.value(), kept
        return found

    def picture(self, inputs: Any, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The picture that the model gives with the parameters as they are now, or with given ones."""
        if values is None:
            values = {name: c.value() for name, c in self.unknowns.items()}
        named = {f"model.{name}": value for name, value in values.items()}
        return picture_of(functional_call(self.called, named, (inputs,)))

    def solve(self, portion: list[Any], before: list[Tensor], over: Mapping[Constraint, float]) -> None:
        """One round: the multipliers follow ``over``, ratios of levels to their aims on other data, then a
        few steps on ``portion``, whose pictures were ``before``."""
        self.first = self.first or dict(over)
        for c, ratio in over.items():
            m = self.multipliers.get(c, 0.0)
            if m:
                m *= self._step(c, ratio)
            elif ratio > 1.02:
                m = _START * min(ratio, 10.0) * self._price(c)
            self.multipliers[c] = min(m, _MOST * self._price(c))
        self.replay.forget()
        # Differences of gradients across portions are no curvature: have L-BFGS leave that pair out.
        state = self.optimizer.state[next(iter(self.unknowns.values())).u]
        if "t" in state:
            state["t"] = 0.0
        samples = sum(map(len, before))
        spectra = [self.spectrum(was) for was in before]
        # float32 gradients of a mean of tiny numbers: in units of a 10,000th of the pictures' power
        gain = 1e4 / (sum(y.square().mean().item() * len(y) for y in before) / samples + 1e-12)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            with torch.enable_grad():
                ridge = sum((c.u.square().sum() for c in self.unknowns.values()), torch.zeros(()))
                ridge = gain * RIDGE * ridge
                ridge.backward()
                total = ridge.item()
                for n, (inputs, was, old) in enumerate(zip(portion, before, spectra, strict=True)):
                    with self.replay.batch(n):
                        y = self.picture(inputs)
                    powers = self.powers(y)
                    change = self.change(y - was) + _KEPT * self.spectrum_change(self.spectrum(y), old)
                    cost = sum((m * powers[c] for c, m in self.multipliers.items() if m), change)
                    cost = cost * (gain * len(y) / samples)
                    cost.backward()
                    total += cost.item()
            return torch.tensor(total)

        self.optimizer.step(closure)
        with torch.no_grad():
            self.rounds += 1
            new = _NEW if self.rounds > _FIRST else 1.0
            for name, unknown in self.unknowns.items():
                self.means[name] = self.means.get(name, unknown.u).lerp(unknown.u, new)

    def _step(self, constraint: Constraint, ratio: float) -> float:
        """What to multiply a multiplier m by. The power at a frequency falls about as (1 + m/p)^-2, p being
        the price of changing it there: how far it has come tells p, and that the m to come."""
        first = self.first[constraint]
        if first < 1.02 or ratio < 0.9:
            return min(max(ratio**_EAGER, 0.1), _MORE)
        come, whole = (math.sqrt(first / r) - 1 for r in (ratio, 1.0))
        return min(whole / max(come, 1e-3), _MORE) ** _CAUTION

    def change(self, difference: Tensor) -> Tensor:
        """The price of a difference of pictures (N, C, H, W): 1 for white noise of power 1."""
        value = self.value.to(difference)
        if value.shape != difference.shape[-2:]:
            value = nn.functional.interpolate(value[None, None], difference.shape[-2:], mode="nearest")[0, 0]
        return (torch.fft.fft2(difference, norm="ortho").abs().square() * value).mean()

    def spectrum_change(self, new: Tensor, old: Tensor) -> Tensor:
        """The price of another power spectrum away from the artifact's frequencies: v(f) P(f) (P'(f) / P(f) -
        1)^2 on average."""
        ratio = new / (old + 1e-12 * old.sum())
        return (self.far.to(new) * self.value.to(new) * old * (ratio - 1).square()).mean()

    def spectrum(self, y: Tensor) -> Tensor:
        """P(f): the mean power of Hann-windowed pictures (N, C, H, W)."""
        height, width = self.windows[GLOBAL]
        hann = torch.hann_window(height)[:, None] * torch.hann_window(width)
        hann = (hann / hann.square().mean().sqrt()).to(y)
        cut = (y - y.mean((-2, -1), keepdim=True))[..., :height, :width]
        return torch.fft.fft2(cut * hann, norm="ortho").abs().square().mean((0, 1))

    def _price(self, constraint: Constraint) -> float:
        """v(f), for the share that one frequency has of a window's."""
        kind, f = constraint
        (height, width), (h, w) = self.windows[GLOBAL], self.windows[kind]
        value = self.value[round(f[0] * height), round(f[1] * width)].item()
        return value / (h * w) * (_LOCAL if kind == WINDOWED else 1.0)

    def powers(self, y: Tensor) -> dict[Constraint, Tensor]:
        """Mean power of pictures (N, C, H, W) wherever there is a multiplier (white noise of power 1 has
        1).
        """
        found: dict[Constraint, Tensor] = {}
        for kind, window in self.windows.items():
            wanted = [c for c, m in self.multipliers.items() if m and c[0] == kind]
            across, down = (partial(_rows, y.shape[n], window[n]) for n in (-1, -2))
            parts = {i: y @ across(i).to(y).mT for i in {f[1] for _, f in wanted}}
            for c in wanted:
                both = down(c[1][0]).to(y) @ parts[c[1][1]]
                (cc, cs), (sc, ss) = (half.chunk(2, -1) for half in both.chunk(2, -2))
                found[c] = ((cc - ss).square() + (cs + sc).square()).mean()
        return found


@cache
def _rows(length: int, size: int, frequency: float) -> Tensor:
    """(2 * windows, length): Hann windows, half overlapping, times cosine, then times sine."""
    hann = torch.hann_window(size, dtype=torch.float64)
    starts = range(0, length - size + 1, max(size // 2, 1))
    rows = torch.zeros(len(starts), length, dtype=torch.float64)
    for row, start in zip(rows, starts, strict=True):
        row[start : start + size] = hann / hann.square().sum().sqrt()
    turn = 2 * math.pi * frequency * torch.arange(length, dtype=torch.float64)
    return torch.cat([rows * turn.cos(), rows * turn.sin()])


class _Called(nn.Module):
    """``run(model, inputs)`` as a module, for ``functional_call``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return run(self.model, inputs)
