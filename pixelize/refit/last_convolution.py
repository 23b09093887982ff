"""A model's last convolution made blind to the pattern in what it reads, in closed form.

At a frequency f a convolution answers W(f)^T z: W(f) is the Fourier transform of its kernels over the taps,
z the features' Fourier coefficients at f. With g what the kernels read at one place and Z_f = E[z* z^T],
taken in windows of eight periods, the change D of the weights is sought that minimises

    E |D^T g|^2 + mu sum_f E |(W + D)(f)^T z|^2 / natural(f)

that is, the least change of the picture (g of features that are filtered as :class:`Price` weighs
frequencies) with which a line at f that the features hold is not passed on: a
notch folded into the last convolution. It holds for other pictures too: where mu is large, W(f) vanishes in
every direction that features at f have, whatever their mixture.

A large kernel (9x9 of 64 channels has 5,184 numbers for each output) is changed in a few modes only: those
of the least change if all channels were alike, R^-1 cos(2 pi f t) and R^-1 sin(2 pi f t), with R the second
moments over the taps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pixelize.measure.any_axes import Frequency
from pixelize.measure.checkerboard import WINDOWED
from pixelize.refit.calls import Call
from pixelize.refit.coordinates import read_by, taps_of
from pixelize.refit.powers import Windows, coefficients
from pixelize.refit.price import Price
from pixelize.rewrites.state.precision import float64

_EXACT = 1152
"""Numbers for one output up to which all of them may change; of more, so many modes times channels."""
_ROWS = 12288
_RIDGE = 1e-3
_MIXED = 0.01
"""Share of the diagonal added to the lines' second moments: other pictures mix the channels otherwise."""


class LastConvolution:
    """One convolution, seen at work.

    Args:
        weight: its weight (outputs, inputs of a group, taps along each axis).
        calls: its runs.
        lines: natural power at each frequency that it should be blind to; the most important first.
        price: of changes; its windows are those in which the features' lines are measured.
    """

    def __init__(
        self, weight: Tensor, calls: list[Call], lines: Mapping[Frequency, float], price: Price
    ) -> None:
        call = calls[0]
        self.weight, self.groups = weight.detach(), call.groups
        ins, taps = weight.shape[1], taps_of(call)
        generator = torch.Generator().manual_seed(0)
        rows = -(-_ROWS // len(calls))
        read = torch.cat(
            [read_by(replace(c, input=price.weighed(c.input)), taps, rows, generator) for c in calls]
        )
        turns = {f: _turn(f, tuple(weight.shape[2:]), call.dilation) for f in lines}
        self.basis = torch.eye(len(taps), dtype=torch.float64)  # taps, modes
        if ins * len(taps) > _EXACT:
            moment = float64(torch.einsum("rtgi,rsgi->ts", read, read)).cpu()
            turns = {f: turns[f] for f in list(turns)[: max(1, _EXACT // (2 * ins))]}
            self.basis = _modes(moment, list(turns.values()))
        self.waves = _modes(torch.eye(len(taps), dtype=torch.float64), list(turns.values()))
        modes = torch.einsum("tm,rtgi->grmi", self.basis.to(read), read).flatten(2)
        gram = float64(modes.mT @ modes / modes.shape[1]).cpu()
        size = gram.diagonal(dim1=-2, dim2=-1).mean()
        self.gram = gram + _RIDGE * size * torch.eye(gram.shape[-1]).to(gram)
        kernels = (
            float64(self.weight).cpu().flatten(2).unflatten(0, (self.groups, -1))
        )  # groups, outs, ins, taps
        self.passed, self.pull = torch.zeros_like(gram), gram.new_zeros(*gram.shape[:2], kernels.shape[1])
        for f, turn in turns.items():
            moment = _line(calls, f, price.windows, self.groups) / lines[f]
            own = moment.diagonal(dim1=-2, dim2=-1).real
            own = _MIXED * own + _RIDGE * own.mean(-1, keepdim=True)
            moment = moment + torch.diag_embed(own)
            of_modes = self.basis.to(turn).mT @ turn
            both = of_modes.conj()[:, None] * of_modes
            self.passed += torch.einsum("mn,gij->gminj", both, moment).real.reshape(gram.shape)
            answer = torch.einsum("goit,t->gio", kernels.to(turn), turn)
            self.pull += torch.einsum("m,gij,gjo->gmio", of_modes.conj(), moment, answer).real.flatten(1, 2)
        self.scale = size / self.passed.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-30)

    def within(self, change: Tensor) -> Tensor:
        """The nearest change (groups, taps, ins, outs) that alters the answer at none of the frequencies."""
        waves = self.waves.to(change)
        return change - torch.einsum("tw,sw,gsio->gtio", waves, waves, change)

    def solved(self, mu: float) -> tuple[Tensor, None]:
        """The weight that is as blind as ``mu`` asks for (the bias stays)."""
        share = mu * self.scale
        change = -torch.linalg.solve(self.gram + share * self.passed, share * self.pull)
        change = change.unflatten(1, (self.basis.shape[1], -1))  # groups, modes, ins, outs
        taps = torch.einsum("tm,gmio->goit", self.basis, change).flatten(0, 1)
        return self.weight + taps.reshape(self.weight.shape).to(self.weight), None


def _turn(f: Frequency, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """(taps,): exp(-2 pi i f t) at each tap t."""
    places = torch.cartesian_prod(*(d * torch.arange(k) for k, d in zip(kernel, dilation, strict=True)))
    angle = -2 * math.pi * (places.double().reshape(-1, len(kernel)) @ torch.tensor(f, dtype=torch.float64))
    return torch.polar(torch.ones_like(angle), angle)


def _modes(moment: Tensor, turns: list[Tensor]) -> Tensor:
    """(taps, modes): an orthonormal basis of R^-1 cos and R^-1 sin at all frequencies."""
    size = moment.diagonal().mean()
    regular = moment + _RIDGE * size * torch.eye(len(moment)).to(moment)
    waves = torch.stack([part for turn in turns for part in (turn.real, turn.imag)], 1)
    left, values, _ = torch.linalg.svd(size * torch.linalg.solve(regular, waves), full_matrices=False)
    return left[:, values > 1e-6 * values[0]]


def _line(calls: list[Call], f: Frequency, windows: Windows, groups: int) -> Tensor:
    """(groups, ins, ins): E[z* z^T] of what is read at a frequency."""
    period = windows.own_period(f)
    total, count = torch.zeros((), dtype=torch.complex128), 0
    for call in calls:
        x = call.input.detach().float()
        window = tuple(min(n, m) for n, m in zip(windows.size((WINDOWED, f)), x.shape[2:], strict=True))
        parts = []
        for part in coefficients(x, window, period):  # N, ins, then windows, period for each axis
            for axis, v in reversed(list(enumerate(f))):
                part = part.select(3 + 2 * axis, round(v * period))
            flat = float64(part.movedim(1, -1).flatten(0, -2)).cpu()
            parts.append(flat.unflatten(-1, (groups, -1)).transpose(0, 1))  # groups, windows, ins
        a, b = parts
        total = total + torch.complex(a.mT @ a + b.mT @ b, a.mT @ b - b.mT @ a)
        count += a.shape[1]
    return total / count
