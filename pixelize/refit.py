"""Least change: refit a transposed convolution so that the pattern at given frequencies falls to a given power.

A transposed convolution is linear in its taps w, and so is every windowed Fourier coefficient of what it makes,

    c(y; r, f) = sum_u hann(u - r) exp(-2 pi i <f, u>) y(u)            (window r, frequency f in cycles per pixel).

Taps that cost little and tell a lot are found by a quadratic programme: over the change D of the taps,

    minimise    E |d * (D applied to x)|^2                             (the change of the picture)
    subject to  E |c_j(y) + c_j(d * (D applied to x))|^2 <= t_j        (the power at each artifact frequency j)

where d is the slope of what follows the layer (``tanh`` and the like; 1 where nothing does). Its multipliers m_j >= 0 make
it a least-squares problem, solved by its normal equations

    (A + ridge + sum_j m_j G_j) D = - sum_j m_j b_j.

A, G_j and b_j are averages over the data and are all that is kept of it: memory does not depend on how much there is.
A constraint that holds anyway gets m_j = 0, and one that does not ends *at* its level, not below: no holes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.errors import ArgumentError
from pixelize.spectrum import Frequency


@dataclass(frozen=True)
class Tap:
    """One tap of a transposed convolution: output phase (a_y, a_x), and the input it reads, x[m - q]."""

    ky: int
    kx: int
    phase: tuple[int, int]
    offset: tuple[int, int]


def _accumulate(sums: dict[tuple[str, Frequency], Tensor], key: tuple[str, Frequency], value: Tensor) -> None:
    value = value.to(torch.complex128 if value.is_complex() else torch.float64)
    sums[key] = sums[key] + value if key in sums else value


def taps_of(layer: nn.ConvTranspose2d) -> list[Tap]:
    """The taps of ``layer`` by phase: output ``o = s*i - p + d*t`` is pixel ``m`` of phase ``a`` for ``o = s*m + a``."""
    found = []
    for ky in range(layer.kernel_size[0]):
        for kx in range(layer.kernel_size[1]):
            at = [layer.dilation[n] * t - int(layer.padding[n]) for n, t in enumerate((ky, kx))]
            phase = (at[0] % layer.stride[0], at[1] % layer.stride[1])
            offset = tuple((at[n] - phase[n]) // layer.stride[n] for n in (0, 1))
            found.append(Tap(ky, kx, phase, (offset[0], offset[1])))
    return sorted(found, key=lambda tap: (tap.phase, tap.offset))


def _shifted(x: Tensor, offset: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``out[..., m, n] = x[..., m - qy, n - qx]``, zero outside, of the given size."""
    (qy, qx), (h, w) = offset, x.shape[-2:]
    return F.pad(x, (qx, size[1] - w - qx, qy, size[0] - h - qy))


def _window_rows(starts: list[int], length: int, size: int, stride: int, phase: int, cycles: float) -> Tensor:
    """Rows r of ``hann(s*m + a - r) exp(-2 pi i cycles m)`` over low-resolution pixels m: (windows, pixels)."""
    hann = torch.hann_window(size) / torch.hann_window(size).square().sum().sqrt() / len(starts) ** 0.5
    rows = torch.zeros(len(starts), length)
    for row, start in zip(rows, starts, strict=True):
        row[start : start + size] = hann
    rows = rows[:, phase::stride]
    turn = (torch.arange(rows.shape[1], dtype=torch.float64) * cycles).remainder(1.0) * (-2 * math.pi)
    turns = torch.polar(torch.ones_like(turn), turn).to(torch.complex64)
    return rows * (turns.real if turns.imag.abs().max() < 1e-6 else turns)


@dataclass
class _System:
    """Sums of one independent least-squares problem: output channels that share features and slope."""

    outputs: list[int]
    inputs: slice
    change: Tensor  # (phases, n, n): A, by phase; phases do not mix
    power: dict[tuple[str, Frequency], Tensor] = field(
        default_factory=dict
    )  # (n, n) Hermitian, by low frequency
    cross: dict[tuple[str, Frequency], Tensor] = field(default_factory=dict)  # (n, phases * outputs)
    own: dict[tuple[str, Frequency], Tensor] = field(default_factory=dict)  # (outputs, phases, phases)


@dataclass(frozen=True)
class Constraint:
    """Power at frequency ``f`` in windows of kind ``kind``: at most ``most`` (for white noise of power 1 it is 1)."""

    kind: str
    f: Frequency
    most: float


class Refit:
    """The streamed normal equations of one layer (see the module's text).

    Args:
        layer: the transposed convolution to refit; it is not changed.
        period: frequencies are multiples of 1/period of the layer's output; a multiple of its stride.
        windows: kinds of window and their (height, width), e.g. ``{"local": (16, 16), "global": (64, 64)}``.
        sloped: whether :meth:`add` gets a slope; if so, every output channel is a problem of its own.
        weights: (C_out,) how much an output channel's power counts; 1 each by default.
    """

    def __init__(
        self,
        layer: nn.ConvTranspose2d,
        period: int,
        windows: dict[str, tuple[int, int]],
        *,
        sloped: bool,
        weights: Tensor | None = None,
        pixels: int = 128,
        seed: int = 0,
    ) -> None:
        self.layer, self.period, self.windows, self.sloped, self.pixels = (
            layer,
            period,
            windows,
            sloped,
            pixels,
        )
        self.taps = taps_of(layer)
        self.phases = sorted({tap.phase for tap in self.taps})
        self.weights = torch.ones(layer.out_channels) if weights is None else weights
        self.count = 0
        self.generator = torch.Generator().manual_seed(seed)
        low = (period // layer.stride[0], period // layer.stride[1])
        self.low = [
            (j, i) for j in range(low[0]) for i in range(low[1]) if (j, i) <= ((-j) % low[0], (-i) % low[1])
        ]
        self.systems = self._systems()

    def _systems(self) -> list[_System]:
        layer = self.layer
        ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        systems = []
        for group in range(layer.groups):
            channels = list(range(group * outs, (group + 1) * outs))
            for outputs in [[c] for c in channels] if self.sloped else [channels]:
                sizes = [sum(tap.phase == phase for tap in self.taps) * ins for phase in self.phases]
                change = torch.zeros(len(self.taps) * ins, max(sizes), dtype=torch.float64)
                systems.append(_System(outputs, slice(group * ins, (group + 1) * ins), change))
        return systems

    @property
    def size(self) -> int:
        """Unknowns of one problem."""
        return len(self.taps) * self.layer.in_channels // self.layer.groups

    def add(self, x: Tensor, y: Tensor, slope: Tensor | None = None) -> None:
        """Take in a batch: the layer's input (N, C_in, h, w), the picture (N, C_out, H, W) and its slope, like y.

        Raises:
            ArgumentError: the picture is smaller than a window.
        """
        starts = {kind: self._starts(kind, y.shape[-2:]) for kind in self.windows}
        for system in self.systems:
            columns: dict[tuple[str, Frequency], list[Tensor]] = {}
            targets: dict[tuple[str, Frequency], list[Tensor]] = {}
            row = 0
            for phase in self.phases:
                features, here = self._phase(system, phase, x, y, slope)
                at = torch.randint(here[0, 0].numel(), (self.pixels,), generator=self.generator)
                rows = features.flatten(3).flatten(1, 2)[..., at].transpose(1, 2).flatten(0, 1)
                gram = (rows.T @ rows).double() / len(rows) * (len(x) / len(self.phases))
                system.change[row : row + len(gram), : len(gram)] += gram
                row += len(gram)
                for kind in self.windows:
                    for low in self.low:
                        my, mx = (
                            self._rows(kind, n, starts[kind][n], y.shape[2 + n], phase[n], low[n])
                            for n in (0, 1)
                        )
                        dtype = torch.promote_types(my.dtype, mx.dtype)
                        my, mx = my.to(dtype), mx.to(dtype)
                        s = my @ (features.to(dtype) @ mx.T)
                        columns.setdefault((kind, low), []).append(
                            s.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2)
                        )
                        t = my @ (here.to(dtype) @ mx.T)
                        targets.setdefault((kind, low), []).append(t.permute(0, 2, 3, 1).flatten(0, 2))
            for key, parts in columns.items():
                s = torch.cat(parts, 1)
                t = torch.stack(targets[key], 1)  # rows, phases, outputs
                _accumulate(system.power, key, s.mH @ s)
                _accumulate(system.cross, key, s.mH @ t.flatten(1))
                _accumulate(system.own, key, torch.einsum("rpo,rqo->opq", t.conj(), t))
        self.count += len(x)

    def _phase(
        self, system: _System, phase: tuple[int, int], x: Tensor, y: Tensor, slope: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the phase's taps read, times the slope, (N, taps, C, h, w); and the picture's phase (N, outputs, h, w)."""
        step = [slice(phase[n], None, self.layer.stride[n]) for n in (0, 1)]
        here = y[:, system.outputs][..., step[0], step[1]]
        size = (here.shape[-2], here.shape[-1])
        taps = [tap for tap in self.taps if tap.phase == phase]
        features = torch.stack([_shifted(x[:, system.inputs], tap.offset, size) for tap in taps], 1)
        if slope is not None:
            features = features * slope[:, system.outputs][..., step[0], step[1]][:, None]
        return features, here

    def _rows(self, kind: str, axis: int, starts: list[int], length: int, phase: int, low: int) -> Tensor:
        stride = self.layer.stride[axis]
        return _window_rows(
            starts, length, self.windows[kind][axis], stride, phase, low * stride / self.period
        )

    def _starts(self, kind: str, size: Sequence[int]) -> list[list[int]]:
        """Where this batch's windows start, down and across: at random, at most four each way."""
        starts = []
        for axis in (0, 1):
            places = size[axis] - self.windows[kind][axis] + 1
            if places < 1:
                raise ArgumentError(
                    f"a picture of size {tuple(size)} is smaller than the window {self.windows[kind]}"
                )
            starts.append(torch.randperm(places, generator=self.generator)[:4].tolist())
        return starts

    def _low(self, f: Frequency) -> tuple[Frequency, bool]:
        """The low-resolution frequency that f folds to, and whether it is stored as its conjugate."""
        low = tuple(f[n] % (self.period // self.layer.stride[n]) for n in (0, 1))
        mirrored = tuple((-f[n]) % (self.period // self.layer.stride[n]) for n in (0, 1))
        return (low, False) if low in self.low else (mirrored, True)  # type: ignore[return-value]

    def _turn(self, f: Frequency) -> Tensor:
        """exp(-2 pi i <f, a>) for each phase a: what puts the phases' coefficients together."""
        angle = [-2 * math.pi * (f[0] * a[0] + f[1] * a[1]) / self.period for a in self.phases]
        angle = torch.tensor(angle, dtype=torch.float64)
        return torch.polar(torch.ones_like(angle), angle)

    def form(self, system: _System, kind: str, f: Frequency) -> tuple[Tensor, Tensor, Tensor]:
        """(G, b, p): the power at ``f`` is ``p_o + 2 b_o.D_o + D_o.G D_o`` for output o; G (n, n), b (n, outputs), p (outputs,)."""
        low, mirrored = self._low(f)
        key, turn = (kind, low), self._turn(f)
        if mirrored:
            turn = turn.conj()
        per_tap = torch.stack([turn[self.phases.index(tap.phase)] for tap in self.taps])
        per_tap = per_tap.repeat_interleave(self.layer.in_channels // self.layer.groups)
        n = self.count
        g = (per_tap.conj()[:, None] * system.power[key] * per_tap).real / n
        cross = system.cross[key].unflatten(1, (len(self.phases), -1)).to(turn.dtype)
        b = (per_tap.conj()[:, None] * torch.einsum("npo,p->no", cross, turn)).real / n
        p = torch.einsum("p,opq,q->o", turn.conj(), system.own[key].to(turn.dtype), turn).real / n
        return g, b, p

    def _change(self, system: _System) -> Tensor:
        """A as a full matrix: block diagonal over phases."""
        n = self.layer.in_channels // self.layer.groups
        blocks, row = [], 0
        for phase in self.phases:
            size = sum(tap.phase == phase for tap in self.taps) * n
            blocks.append(system.change[row : row + size, :size])
            row += size
        return torch.block_diag(*blocks) / self.count

    def solve(self, constraints: Sequence[Constraint], *, ridge: float = 1e-4, rounds: int = 30) -> Tensor:
        """The refitted weight, in the layer's own shape and dtype."""
        total = sum(float(self.weights[o]) for system in self.systems for o in system.outputs)
        most = torch.tensor([c.most for c in constraints], dtype=torch.float64)
        forms = [[self.form(system, c.kind, c.f) for c in constraints] for system in self.systems]
        change = [self._change(system) for system in self.systems]
        for a in change:
            a.diagonal().add_(ridge * a.diagonal().mean() + 1e-12)

        def at(multipliers: Tensor) -> tuple[list[Tensor], Tensor]:
            power = torch.zeros_like(most)
            steps = []
            for system, a, form in zip(self.systems, change, forms, strict=True):
                active = [(float(m), f) for m, f in zip(multipliers, form, strict=True) if m > 0]
                matrix = a + sum(m * f[0] for m, f in active)
                right = -sum((m * f[1] for m, f in active), torch.zeros_like(form[0][1]))
                d = torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
                steps.append(d)
                share = self.weights[system.outputs].double() / total
                for n, (g, b, p) in enumerate(form):
                    power[n] += (share * (p + 2 * (b * d).sum(0) + (d * (g @ d)).sum(0))).sum()
            return steps, power

        multipliers = torch.zeros_like(most)
        steps, power = at(multipliers)
        for _ in range(rounds):
            over = power / most
            fresh = torch.where((multipliers == 0) & (over > 1), 0.02, 0.0)
            updated = torch.where(multipliers > 0, multipliers * over.clamp(0.1, 10.0), fresh)
            updated[updated < 1e-4] = 0
            updated.clamp_(max=100.0)
            done = (over < 1.01).all() and (
                (updated / multipliers.clamp_min(1e-9) - 1).abs() < 0.02
            ).logical_or(multipliers == 0).all()
            multipliers = updated
            if done:
                break
            steps, power = at(multipliers)
        self.multipliers, self.power = multipliers, power
        return self._weight(steps)

    def _weight(self, steps: list[Tensor]) -> Tensor:
        weight = self.layer.weight.detach().clone()
        n = self.layer.in_channels // self.layer.groups
        for system, step in zip(self.systems, steps, strict=True):
            for t, tap in enumerate(self.taps):
                for column, output in enumerate(system.outputs):
                    of_group = output % (self.layer.out_channels // self.layer.groups)
                    weight[system.inputs, of_group, tap.ky, tap.kx] += step[t * n : (t + 1) * n, column].to(
                        weight
                    )
        return weight
