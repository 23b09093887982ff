"""Least change: refit a transposed convolution so that the power at given frequencies falls to given levels.

A transposed convolution is linear in its taps w, and so is every windowed Fourier coefficient of what it
makes,

    c(y; r, f) = sum_u hann(u - r) exp(-2 pi i <f, u>) y(u)        (window r, frequency f in cycles per
    pixel).

Changed taps that cost little and tell a lot come out of a quadratic programme over the change D of the taps:

    minimise    sum_f v(f) E |c_f(d * (D applied to x))|^2                 (the change of the picture)
    subject to  E |c_j(y) + c_j(d * (D applied to x))|^2 <= t_j            (the power at each artifact
    frequency j)

where d is the slope of what follows the layer (``tanh`` and the like; 1 where nothing does) and v weighs
frequencies: 1 everywhere for the smallest change in pixels, more where the picture has little power to keep
its spectrum as it is. The multipliers m_j >= 0 of the constraints make it a least-squares problem, solved
by its normal equations

    (A + ridge + sum_j m_j G_j) D = - sum_j m_j b_j.

A, G_j and b_j are averages over the data and all that is kept of it: memory does not depend on how much
there is. A constraint that holds anyway gets m_j = 0, and one that does not ends *at* its level, not below:
no holes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.errors import ArgumentError
from pixelize.spectrum import LOCAL, Frequency

_CHUNK = 2**22
"""Numbers of one phase's features held at a time: memory stays flat whatever the batch."""

_MOST = 30.0
"""The largest multiplier, in units of the change's own value there: a level out of reach is not forced."""

_METRIC = "metric"
_METRIC_FREQUENCIES = 4
"""Low frequencies, drawn anew for each batch, at which the change is measured."""


def frequencies_folded(height: int, width: int) -> list[Frequency]:
    """All multiples of (1/height, 1/width), zero too, one of each pair (f, -f)."""
    every = [(j, i) for j in range(height) for i in range(width)]
    return [(j, i) for j, i in every if (j, i) <= ((-j) % height, (-i) % width)]


def _coefficients(x: Tensor, rows: list[list[Tensor]]) -> list[Tensor]:
    """Windowed coefficients of (N, C, h, w): (N * windows, C) for each pair of rows down and across."""
    found: dict[int, Tensor] = {}
    real = [n for n, pair in enumerate(rows) if not any(m.is_complex() for m in pair)]
    for dtype, group in (
        (torch.float32, real),
        (torch.complex64, [n for n in range(len(rows)) if n not in real]),
    ):
        if group:
            across = torch.cat([rows[n][1].to(dtype) for n in group])
            parts = (x.to(dtype) @ across.T).split([len(rows[n][1]) for n in group], -1)
            for n, part in zip(group, parts, strict=True):
                found[n] = (rows[n][0].to(dtype) @ part).permute(0, 2, 3, 1).flatten(0, 2)
    return [found[n] for n in range(len(rows))]


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
    """The taps of ``layer`` by phase: output ``o = s*i - p + d*t`` is pixel ``m`` of phase ``a`` for ``o =
    s*m + a``."""
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
    """Rows r of ``hann(s*m + a - r) exp(-2 pi i cycles s*m)`` over low-resolution pixels m: (windows,
    pixels)."""
    hann = torch.hann_window(size) / torch.hann_window(size).square().sum().sqrt() / len(starts) ** 0.5
    rows = torch.zeros(len(starts), length)
    for row, start in zip(rows, starts, strict=True):
        row[start : start + size] = hann
    rows = rows[:, phase::stride]
    turns = (torch.arange(rows.shape[1], dtype=torch.float64) * stride * cycles).remainder(1.0)
    turn = turns * (-2 * math.pi)
    unit = torch.polar(torch.ones_like(turn), turn).to(torch.complex64)
    return rows * (unit.real if unit.imag.abs().max() < 1e-6 else unit)


@dataclass(frozen=True)
class _Probe:
    """Windows of one kind at one frequency, given in cycles per output pixel, down and across."""

    name: tuple[str, Frequency]
    window: tuple[int, int]
    starts: tuple[list[int], list[int]]
    cycles: tuple[float, float]


@dataclass
class _System:
    """Sums of one independent least-squares problem: output channels that share features and slope."""

    outputs: list[int]
    inputs: slice
    change: Tensor  # (n, n): A
    power: dict[tuple[str, Frequency], Tensor] = field(
        default_factory=dict
    )  # (n, n) Hermitian, by low frequency
    cross: dict[tuple[str, Frequency], Tensor] = field(default_factory=dict)  # (n, phases, outputs)
    own: dict[tuple[str, Frequency], Tensor] = field(default_factory=dict)  # (phases, phases, outputs)


@dataclass(frozen=True)
class Constraint:
    """Power at frequency ``f`` in windows of kind ``kind``: at most ``most`` (white noise of power 1 has
    1)."""

    kind: str
    f: Frequency
    most: float


@dataclass(frozen=True)
class Solution:
    """A refitted weight in the layer's own shape and dtype, the multipliers, and the power predicted by
    constraint."""

    weight: Tensor
    multipliers: Tensor
    power: Tensor


class Refit:
    """The streamed normal equations of one layer (see the module's text).

    Args:
        layer: the transposed convolution to refit; it is not changed.
        period: frequencies are multiples of 1/period of the layer's output; a multiple of its strides.
        windows: kinds of window and their (height, width), e.g. ``{"local": (16, 16), "global": (64,
            64)}``; the local one a multiple of the strides.
        value: v(f) by bin of the local window, in its shape.
        sloped: whether :meth:`add` gets a slope; if so, every output channel is a problem of its own.
        weights: (C_out,) factors of the output channels' power, before the mean over them; 1 by default.
    """

    def __init__(
        self,
        layer: nn.ConvTranspose2d,
        period: int,
        windows: dict[str, tuple[int, int]],
        value: Tensor,
        *,
        sloped: bool,
        weights: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.layer, self.period, self.windows, self.value = layer, period, windows, value
        self.taps = taps_of(layer)
        self.phases = sorted({tap.phase for tap in self.taps})
        self.weights = torch.ones(layer.out_channels) if weights is None else weights
        self.count = 0
        self.generator = torch.Generator().manual_seed(seed)
        stride = layer.stride
        self.low = frequencies_folded(period // stride[0], period // stride[1])
        self.grid = frequencies_folded(windows[LOCAL][0] // stride[0], windows[LOCAL][1] // stride[1])
        self.systems = self._systems(sloped)

    def _systems(self, sloped: bool) -> list[_System]:
        layer, n = self.layer, self.size
        ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        systems = []
        for group in range(layer.groups):
            channels = list(range(group * outs, (group + 1) * outs))
            for outputs in [[c] for c in channels] if sloped else [channels]:
                zeros = torch.zeros(n, n, dtype=torch.float64)
                systems.append(_System(outputs, slice(group * ins, (group + 1) * ins), zeros))
        return systems

    @property
    def size(self) -> int:
        """Unknowns of one problem."""
        return len(self.taps) * self.layer.in_channels // self.layer.groups

    def add(self, x: Tensor, y: Tensor, slope: Tensor | None = None) -> None:
        """Take in a batch: the layer's input (N, C_in, h, w), the picture (N, C_out, H, W) and its slope,
        like y.

        Raises:
            ArgumentError: the picture is smaller than a window.
        """
        probes = self._probes(y.shape[-2], y.shape[-1])
        for system in self.systems:
            parts = [self._phase(system, phase, x, y, slope, probes) for phase in self.phases]
            for probe in probes:
                s = torch.cat([part[probe.name][0] for part in parts], 1)  # rows, n
                gram = s.mH @ s
                if probe.name[0] == _METRIC:
                    system.change += self._valued(gram, probe.name[1]).double()
                    continue
                t = torch.stack([part[probe.name][1] for part in parts], 1)  # rows, phases, outputs
                _accumulate(system.power, probe.name, gram)
                _accumulate(system.cross, probe.name, torch.einsum("rn,rpo->npo", s.conj(), t))
                _accumulate(system.own, probe.name, torch.einsum("rpo,rqo->pqo", t.conj(), t))
        self.count += len(x)

    def _probes(self, height: int, width: int) -> list[_Probe]:
        """The windows of this batch: at random places, at all low frequencies; and a few to measure change
        by."""
        probes = []
        for kind, window in self.windows.items():
            if window[0] > height or window[1] > width:
                raise ArgumentError(f"a picture of {height}x{width} is smaller than the window {window}")
            starts = (self._draw(height - window[0] + 1, 4), self._draw(width - window[1] + 1, 4))
            for low in self.low:
                cycles = (low[0] / self.period, low[1] / self.period)
                probes.append(_Probe((kind, low), window, starts, cycles))
        window = self.windows[LOCAL]
        for index in self._draw(len(self.grid), _METRIC_FREQUENCIES):
            g = self.grid[index]
            starts = (self._draw(height - window[0] + 1, 2), self._draw(width - window[1] + 1, 2))
            probes.append(_Probe((_METRIC, g), window, starts, (g[0] / window[0], g[1] / window[1])))
        return probes

    def _draw(self, places: int, most: int) -> list[int]:
        return torch.randperm(places, generator=self.generator)[:most].tolist()

    def _phase(
        self,
        system: _System,
        phase: tuple[int, int],
        x: Tensor,
        y: Tensor,
        slope: Tensor | None,
        probes: list[_Probe],
    ) -> dict[tuple[str, Frequency], tuple[Tensor, Tensor]]:
        """By probe, the coefficients of what one phase's taps read, times the slope, (rows, n), and of the
        picture's own phase, (rows, outputs)."""
        step = [slice(phase[n], None, self.layer.stride[n]) for n in (0, 1)]
        here = y[:, system.outputs][..., step[0], step[1]]
        height, width = here.shape[-2:]
        taps = [tap for tap in self.taps if tap.phase == phase]
        rows = [
            [
                _window_rows(
                    probe.starts[n],
                    y.shape[2 + n],
                    probe.window[n],
                    self.layer.stride[n],
                    phase[n],
                    probe.cycles[n],
                )
                for n in (0, 1)
            ]
            for probe in probes
        ]
        chunk = max(1, _CHUNK // (len(taps) * (system.inputs.stop - system.inputs.start) * height * width))
        found: list[tuple[list[Tensor], ...]] = []
        for n in range(0, len(x), chunk):
            part, picture = x[n : n + chunk, system.inputs], here[n : n + chunk]
            features = part.new_empty(len(part), len(taps), part.shape[1], height, width)
            for t, tap in enumerate(taps):
                features[:, t] = _shifted(part, tap.offset, (height, width))
            if slope is not None:
                features *= slope[n : n + chunk, system.outputs][..., step[0], step[1]][:, None]
            found.append((_coefficients(features.flatten(1, 2), rows), _coefficients(picture, rows)))
        return {
            probe.name: (torch.cat([f[0][n] for f in found]), torch.cat([f[1][n] for f in found]))
            for n, probe in enumerate(probes)
        }

    def _valued(self, gram: Tensor, g: Frequency) -> Tensor:
        """The change's own form: the Gram matrix of low frequency g, summed over the output frequencies
        that fold to g, each with its value."""
        window, stride = self.windows[LOCAL], self.layer.stride
        mask = torch.zeros(len(self.taps), len(self.taps), dtype=torch.complex128)
        for j in range(stride[0]):
            for i in range(stride[1]):
                f = (g[0] + j * window[0] // stride[0], g[1] + i * window[1] // stride[1])
                turn = self._per_tap(self._turn(f[0] / window[0], f[1] / window[1]))
                mask += turn.conj()[:, None] * turn * self.value[f[0] % window[0], f[1] % window[1]].item()
        mask = mask.to(torch.complex64) / (stride[0] * stride[1]) / min(_METRIC_FREQUENCIES, len(self.grid))
        n = self.layer.in_channels // self.layer.groups
        blocks = gram.unflatten(1, (-1, n)).unflatten(0, (-1, n))
        return (blocks * mask[:, None, :, None]).real.reshape(gram.shape)

    def _per_tap(self, by_phase: Tensor) -> Tensor:
        return by_phase[[self.phases.index(tap.phase) for tap in self.taps]]

    def _turn(self, down: float, across: float) -> Tensor:
        """exp(-2 pi i <f, a>) for each phase a: what puts the phases' coefficients together."""
        angle = torch.tensor(
            [-2 * math.pi * (down * a[0] + across * a[1]) for a in self.phases], dtype=torch.float64
        )
        return torch.polar(torch.ones_like(angle), angle)

    def _low(self, f: Frequency) -> tuple[Frequency, bool]:
        """The low-resolution frequency that f folds to, and whether it is stored as its conjugate."""
        low = tuple(f[n] % (self.period // self.layer.stride[n]) for n in (0, 1))
        mirrored = tuple((-f[n]) % (self.period // self.layer.stride[n]) for n in (0, 1))
        return (low, False) if low in self.low else (mirrored, True)  # type: ignore[return-value]

    def form(self, system: _System, kind: str, f: Frequency) -> tuple[Tensor, Tensor, Tensor]:
        """(G, b, p): the power at f is ``p[o] + 2 b[:, o].D[:, o] + D[:, o].G D[:, o]`` for output o of the
        system."""
        low, mirrored = self._low(f)
        turn = self._turn(f[0] / self.period, f[1] / self.period)
        if mirrored:
            turn = turn.conj()
        per_tap = self._per_tap(turn).repeat_interleave(self.layer.in_channels // self.layer.groups)
        name = (kind, low)
        g = (per_tap.conj()[:, None] * system.power[name] * per_tap).real / self.count
        cross = torch.einsum("npo,p->no", system.cross[name].to(turn.dtype), turn)
        b = (per_tap.conj()[:, None] * cross).real / self.count
        p = torch.einsum("p,pqo,q->o", turn.conj(), system.own[name].to(turn.dtype), turn).real / self.count
        return g, b, p

    def solve(
        self,
        constraints: Sequence[Constraint],
        *,
        start: Tensor | None = None,
        ridge: float = 1e-4,
        rounds: int = 15,
    ) -> Solution:
        """The least change under the constraints; ``start`` are multipliers of an earlier solution."""
        most = torch.tensor([c.most for c in constraints], dtype=torch.float64)
        forms = [[self.form(system, c.kind, c.f) for c in constraints] for system in self.systems]
        change = [system.change / self.count for system in self.systems]
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
                share = self.weights[system.outputs].double() / len(self.weights)
                for n, (g, b, p) in enumerate(form):
                    power[n] += (share * (p + 2 * (b * d).sum(0) + (d * (g @ d)).sum(0))).sum()
            return steps, power

        window = self.windows[LOCAL]
        bins = [(c.f[0] * window[0] // self.period, c.f[1] * window[1] // self.period) for c in constraints]
        unit = torch.stack([self.value[f] for f in bins]).double()
        multipliers = torch.zeros_like(most) if start is None else start
        steps, power = at(multipliers)
        for _ in range(rounds):
            over = power / most
            raised = torch.where(
                multipliers > 0, multipliers * over.clamp(0.1, 10.0), 0.02 * unit * (over > 1)
            )
            raised = torch.where(raised < 1e-4 * unit, 0.0, raised).minimum(_MOST * unit)
            still = (raised - multipliers).abs() <= 0.02 * multipliers
            multipliers = raised
            if still.all():
                break
            steps, power = at(multipliers)
        return Solution(self._weight(steps), multipliers, power)

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
