"""Least change: alter some weights together so that the power at given frequencies falls to given levels,
whatever follows them.

Over the chosen weights,

    minimise    sum_f v(f) E |P_f(y' - y)|^2                         (the change of the picture y)
                + sum_(f far from all j) v(f) P_f (P'_f / P_f - 1)^2  (the change of its power spectrum)
    subject to  E |c_j(y')|^2 <= t_j                                 (the power at each artifact frequency j)

where P_f(y) is the picture's Fourier transform and P_f its mean power, c_j a Hann-windowed coefficient
(:mod:`pixelize.refit.powers`), and v weighs frequencies: more where the picture has little power. What
follows a layer (norms, activations, convolutions, further up-samplers, a head) is run as it is, so the
picture is no linear function of the weights, but nearly: the change is small. For given multipliers m_j >= 0

    sum_f v(f) E |P_f(y' - y)|^2 + sum_j m_j E |c_j(y')|^2 + ridge |u|^2

is near-quadratic, and a few steps of L-BFGS over a portion of the data bring it to its least value, in
coordinates u that whiten what the layers read (:mod:`pixelize.refit.coordinates`): nothing is drawn at
random and no step size is chosen. After that each multiplier is raised or lowered by what its level, on
other data, is over or under its aim, and the next portion follows: memory does not depend on the amount
of data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.refit.calls import calls_seen, named_parameters, replaced
from pixelize.refit.candidates import Candidate
from pixelize.refit.coordinates import Coordinates, ScaledParameter, WhitenedWeights, Within
from pixelize.refit.limits import RepairLimits
from pixelize.refit.multipliers import Multipliers
from pixelize.refit.powers import Constraint, powers
from pixelize.refit.prefix_cache import Replay
from pixelize.refit.price import Price
from pixelize.refit.runner import Runner
from pixelize.refit.sample import Sample

Batch = list[Sample]


_NEW = 0.5
"""The last round's share in the average over rounds."""


class LeastChange:
    """The problem for one model and some of its weights.

    Args:
        runner: gives the model's pictures; in evaluation mode, its parameters' history not recorded.
        per_run: operators with weights in one run.
        chosen: the weights to alter.
        examples: batches to learn from what the operators read.
        price: of changes.
        ridge: price of the coordinates themselves.
        start: parameters by name to start from, where these are not the model's own.
        within: of weights by name, what takes from a change what it may not have.
    """

    def __init__(
        self,
        runner: Runner,
        per_run: int,
        chosen: list[Candidate],
        examples: list[Batch],
        price: Price,
        limits: RepairLimits,
        ridge: float,
        start: Mapping[str, Tensor] | None = None,
        within: Mapping[str, Within] | None = None,
    ) -> None:
        self.runner, self.price, self.limits, self.ridge = runner, price, limits, ridge
        self.windows = price.windows
        self.within = dict(within or {})
        self.named = {**named_parameters(runner.model), **(start or {})}
        self.per_run = per_run
        first = min(n for c in chosen for n in c.numbers)
        self.replay = Replay(first, per_run, limits.kept_bytes // 2)
        self.held_replay = Replay(first, per_run, limits.kept_bytes // 2)
        self.unknowns = self._unknowns(chosen, examples)
        self.gain = self._balance(examples[0])
        self.multipliers = Multipliers(price)
        self.means: dict[str, Tensor] = {}
        self.rounds = 0
        self.optimizer = torch.optim.LBFGS(
            [c.u for c in self.unknowns.values()],
            max_iter=limits.steps,
            max_eval=2 * limits.steps,
            history_size=30,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def _unknowns(self, chosen: list[Candidate], examples: list[Batch]) -> dict[str, Coordinates]:
        wanted = {n: c.weights[0] for c in chosen for n in c.numbers}
        seen = calls_seen(self.runner, self.per_run, wanted, examples)
        found: dict[str, Coordinates] = {}
        for candidate in chosen:
            weight, *others = candidate.weights
            calls = seen[weight]
            within = self.within.get(weight)
            found[weight] = WhitenedWeights(self.named[weight], calls, self.limits.largest, within=within)
            for other in others if within is None else []:
                found[other] = ScaledParameter(self.named[other])
            calls.clear()
        return found

    def _balance(self, batch: Batch) -> float:
        """Lets a change of size one of any coordinate change the picture by about a thousandth of its root
        mean square. Returns the factor by which the cost then has a curvature of about one, as L-BFGS
        expects at first."""
        with torch.no_grad():
            unit = 1e-3 * (self.runner(batch).square().mean().sqrt().item() + 1e-12)
        grads = self.gradient(
            batch,
            lambda y: (
                (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)).sum()
                / y.numel() ** 0.5
            ),
        )
        for c, grad in zip(self.unknowns.values(), grads, strict=True):
            c.balance(grad / unit)
        return 0.5 / (unit**2 * (1 + self.ridge))

    def gradient(self, batch: Batch, function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Of a function of a batch's pictures, to all coordinates."""
        with torch.enable_grad():
            leaves = [c.u for c in self.unknowns.values()]
            grads = torch.autograd.grad(function(self.picture(batch)), leaves, allow_unused=True)
        return [torch.zeros_like(u) if g is None else g for u, g in zip(leaves, grads, strict=True)]

    def averaged(self) -> dict[str, Tensor]:
        """The parameters on average over the last rounds, each fitted to its own portion, by qualified name;
        before the first, as they came."""
        found = {}
        with torch.no_grad():
            for name, c in self.unknowns.items():
                kept, c.u.data = c.u.data, self.means.get(name, torch.zeros_like(c.u))
                found[name], c.u.data = c.value().detach().clone(), kept
        return found

    def picture(self, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The pictures that the model gives with the parameters as they are now, or with given ones."""
        if values is None:
            values = {name: c.value() for name, c in self.unknowns.items()}
        with replaced(self.runner.model, values):
            return self.runner(batch)

    def held_picture(self, key: int, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`picture`, for batches that come again in every round, told apart by ``key``."""
        with self.held_replay.batch(key):
            return self.picture(batch, values)

    def solve(self, portion: list[Batch], over: Mapping[Constraint, float]) -> None:
        """One round: the multipliers follow ``over``, ratios of levels to their aims on other data, then a
        few steps on ``portion``."""
        self.multipliers.follow(over)
        self.replay.forget()
        before = []
        for n, batch in enumerate(portion):
            with torch.no_grad(), self.replay.batch(n):
                before.append(self.picture(batch, {}))
        samples = sum(map(len, before))
        spectra = [self.price.spectrum(was) for was in before]
        gain = self.gain
        wanted = {c: m for c, m in self.multipliers.now.items() if m}

        def cost() -> tuple[float, list[Tensor]]:
            leaves = [c.u for c in self.unknowns.values()]
            ridge = 0.5 * self.ridge / (1 + self.ridge)
            total = ridge * sum(float(u.detach().square().sum()) for u in leaves)
            grads = [2 * ridge * u.detach() for u in leaves]
            for n, (batch, was, old) in enumerate(zip(portion, before, spectra, strict=True)):
                with torch.enable_grad(), self.replay.batch(n):
                    y = self.picture(batch)
                    price = self.price.of_change(y - was)
                    price = price + self.limits.spectrum * self.price.of_spectrum(self.price.spectrum(y), old)
                    found = powers(y, self.windows, wanted)
                    price = sum((m * found[c] for c, m in wanted.items()), price)
                    price = price * (gain * len(y) / samples)
                    new = torch.autograd.grad(price, leaves, allow_unused=True)
                total += price.item()
                grads = [g if a is None else g + a for g, a in zip(grads, new, strict=True)]
            return total, grads

        self._minimise(cost)
        with torch.no_grad():
            self.rounds += 1
            new = _NEW if self.rounds > self.limits.first_rounds else 1.0
            for name, unknown in self.unknowns.items():
                self.means[name] = self.means.get(name, unknown.u.detach()).lerp(unknown.u.detach(), new)

    def _minimise(self, cost: Callable[[], tuple[float, list[Tensor]]]) -> None:
        """A few steps of L-BFGS; its line search steps back from what is not finite."""
        leaves = [c.u for c in self.unknowns.values()]
        # Differences of gradients across portions are no curvature: have L-BFGS leave that pair out.
        state = self.optimizer.state[leaves[0]]
        if "t" in state:
            state["t"] = 0.0
        first: list[float] = []

        def closure() -> Tensor:
            value, gradients = cost()
            if not math.isfinite(value) or not all(bool(g.isfinite().all()) for g in gradients):
                if not first:
                    raise ArgumentError("the model's pictures, or their gradients, are not finite")
                value, gradients = 1e3 * (abs(first[0]) + 1), [torch.zeros_like(g) for g in gradients]
            first.append(value)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            return torch.tensor(value, dtype=torch.float64)

        self.optimizer.step(closure)
