"""Which of the candidates are refitted: those that can take most of the pattern out."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelize.refit.candidates import Candidate
from pixelize.refit.judgement import Judge
from pixelize.refit.least_change import LeastChange
from pixelize.refit.powers import powers
from pixelize.refit.price import Price
from pixelize.refit.setting import Setting, batches_of


def chosen_of(setting: Setting, judge: Judge, price: Price) -> tuple[list[Candidate], dict[str, float]]:
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
        return sum((w * found[c] for c, w in weights.items()), y.new_zeros(()))

    names = list(fit.unknowns)
    grads = []
    for batch in halves:
        parts = [fit.gradient(b, pattern) for b in batches_of(batch, max(1, half // 4))]
        grads.append([torch.stack(p).mean(0) for p in zip(*parts, strict=True)])
    gains = {name: (a * b).sum().item() for name, a, b in zip(names, *grads, strict=True)}
    of = {c: sum(gains.get(w, 0.0) for w in c.weights) for c in near}
    most = max(of.values())
    shares = {c.name: v / most for c, v in of.items()} if most > 0 else {}
    ranked = sorted(near, key=lambda c: -of[c])
    chosen = [c for c in ranked if of[c] >= limits.share * most][: limits.layers] or near[:1]
    return chosen, shares
