"""The phases of a model's last up-sampling made to answer what is steady alike, in closed form.

Where nothing with weights follows, the part of the pattern that does not depend on these pictures' content is
what the phases p answer to features d that are constant over the operator's window: d^T R_p, with R_p the sum
of the phase's taps. The change D of the weights is sought that minimises

    sum_p E |D_p^T f_p|^2 + mu sum_p E |(R_p + A D_p - T)^T d|^2

with f_p what the phase's taps read, A the sum over taps, and T, the answer that all phases are to have in
common, free. With K_p = E[f_p f_p^T]^-1, M = E[d d^T] and Q_p = (A K_p A^T + (mu M)^-1)^-1 this is

    T = (sum_p Q_p)^-1 sum_p Q_p R_p,    D_p = -K_p A^T Q_p (R_p - T).

M is of local means of the input, with a small share of its diagonal added: other pictures hold the same
channels in other mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelize.refit.calls import Call
from pixelize.refit.coordinates import Tap, read_by, taps_of
from pixelize.rewrites.state.precision import float64

_MIXED = 0.01
"""Share of the diagonal added to the second moments of what is steady."""
_RIDGE = 1e-3
"""Added to the features' second moments, as a share of their mean diagonal."""
_ROWS = 6000
_AREA = 8
"""Side, in places of the input, of the areas whose means count as steady."""


@dataclass(frozen=True)
class _Phase:
    """Taps that make one phase, and the outputs of a group that they make."""

    taps: list[Tap]
    outputs: slice


class Steady:
    """One operator, seen at work.

    Args:
        weight: the operator's weight.
        bias: its bias if that differs by phase, else None.
        calls: runs of the operator.
        shuffle: factor of the ``pixel_shuffle`` that its output goes through, 1 if none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, calls: list[Call], shuffle: int = 1) -> None:
        call = calls[0]
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.kind, self.groups = call.kind, call.groups
        generator = torch.Generator().manual_seed(0)
        self.taps = taps = taps_of(call)
        if shuffle > 1:
            self.phases = [_Phase(taps, slice(n, None, shuffle**2)) for n in range(shuffle**2)]
        else:
            own = sorted({tap.phase for tap in taps})
            self.phases = [_Phase([t for t in taps if t.phase == p], slice(None)) for p in own]
        per_call = -(-_ROWS // len(calls))
        self.moments: list[Tensor] = []  # of each phase's features: groups, taps * ins, taps * ins
        for phase in self.phases if shuffle == 1 else self.phases[:1]:
            read = torch.cat([read_by(c, phase.taps, per_call, generator) for c in calls])
            features = float64(read.permute(2, 0, 1, 3).flatten(2))
            self.moments.append(_regular(features.mT @ features / features.shape[1], _RIDGE))
        means = torch.cat([_local_means(c.input) for c in calls])
        steady = float64(means.unflatten(1, (self.groups, -1)).transpose(0, 1))  # groups, rows, ins
        if self.bias is not None:
            steady = torch.cat([steady, torch.ones_like(steady[..., :1])], -1)
        moment = steady.mT @ steady / steady.shape[1]
        moment = moment + _MIXED * torch.diag_embed(moment.diagonal(dim1=-2, dim2=-1))
        self.steady = _regular(moment, _RIDGE)

    def within(self, change: Tensor) -> Tensor:
        """The nearest change (groups, taps, ins, outs) that all phases' answers have in common."""
        left = change.clone()
        sums, counts = [], []
        for phase in self.phases:
            at = torch.tensor([self.taps.index(tap) for tap in phase.taps]).to(change.device)
            sums.append(change[:, at, :, phase.outputs].sum(1, keepdim=True))
            counts.append(len(at))
        common = sum(s / n for s, n in zip(sums, counts, strict=True)) / sum(1 / n for n in counts)
        for phase, total, count in zip(self.phases, sums, counts, strict=True):
            at = torch.tensor([self.taps.index(tap) for tap in phase.taps]).to(change.device)
            left[:, at, :, phase.outputs] = change[:, at, :, phase.outputs] - (total - common) / count
        return left

    def solved(self, mu: float) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias whose phases answer alike, as far as ``mu`` asks for."""
        weight = float64(self.weight)
        grouped = weight.unflatten(0, (self.groups, -1))
        axis = 2 if self.kind == "transposed" else 1  # of the outputs
        grouped = grouped.movedim(axis, -1).clone()  # groups, ins, taps..., outs
        bias = None if self.bias is None else float64(self.bias).unflatten(0, (self.groups, -1)).clone()
        loose = torch.linalg.inv(mu * self.steady)
        found, answers = [], []
        for n, phase in enumerate(self.phases):
            inverse = torch.linalg.inv(self.moments[min(n, len(self.moments) - 1)])
            ins = grouped.shape[1]
            total = torch.eye(ins).to(inverse).repeat(1, len(phase.taps)).expand(self.groups, -1, -1)
            reach = inverse @ total.mT
            price = total @ reach
            if bias is not None:
                price = F.pad(price, (0, 1, 0, 1))
                price[..., -1, -1] = 1.0
            answer = torch.stack([_at(grouped, t)[..., phase.outputs] for t in phase.taps]).sum(0)
            if bias is not None:
                answer = torch.cat([answer, bias[:, None, phase.outputs]], 1)
            found.append((phase, reach, torch.linalg.inv(price + loose)))
            answers.append(answer)
        common = torch.linalg.solve(
            sum(q for _, _, q in found), sum(q @ r for (_, _, q), r in zip(found, answers, strict=True))
        )
        for (phase, reach, q), answer in zip(found, answers, strict=True):
            pull = -q @ (answer - common)
            if bias is not None:
                bias[:, phase.outputs] += pull[:, -1]
                pull = pull[:, :-1]
            change = (reach @ pull).unflatten(1, (len(phase.taps), -1))
            for n, tap in enumerate(phase.taps):
                _at(grouped, tap)[..., phase.outputs] += change[:, n]
        grouped = grouped.movedim(-1, axis)
        new_bias = None if bias is None or self.bias is None else bias.flatten().to(self.bias)
        return grouped.flatten(0, 1).to(self.weight), new_bias


def _at(grouped: Tensor, tap: Tap) -> Tensor:
    """A view of one tap of a weight (groups, ins, taps..., outs)."""
    return grouped.movedim((0, 1), (-3, -2))[tap.place]


def _local_means(x: Tensor) -> Tensor:
    """(rows, channels): means over areas of an input (N, C, ...)."""
    area = [min(_AREA, n) for n in x.shape[2:]]
    hop = [max(1, n // 2) for n in area]
    pool = getattr(F, f"avg_pool{len(area)}d")
    return pool(x.detach().float(), area, hop).movedim(1, -1).flatten(0, -2)


def _regular(moment: Tensor, share: float) -> Tensor:
    size = moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    return moment + share * size[:, None, None] * torch.eye(moment.shape[-1]).to(moment)
