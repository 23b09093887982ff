"""The pattern of waveforms, pictures and volumes as numbers, in dB: the measure of pictures along any
number of axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import GLOBAL, RING, WINDOWED, windowed_dft
from pixelize.measure.decibels import decibels
from pixelize.measure.natural import ArtifactLevels, Level
from pixelize.rewrites.state.precision import float64

Frequency = tuple[float, ...]
"""Cycles per sample along each axis: (0.0, 0.0, 0.5) changes sign along the last."""
LINE_RING = (3, 12)
"""Of waveforms: bins away from a frequency where the neighbourhood begins and ends."""
_CHUNK = 2**21  # elements at a time: 16 MiB
_LONG = 512
"""Samples of a window from which it is transformed fast."""
_FLOOR = 1e-12  # of the mean square, as in the measure of pictures


class Form(NamedTuple):
    """Windows of so many samples along each axis, and the ring of bins around a frequency that it is compared
    with.
    """

    window: tuple[int, ...]
    ring: tuple[int, int]


def checkerboard_nd(data: Tensor | Iterable[Tensor], period: int | Sequence[int] = 2) -> dict:
    """Measure the pattern that up-sampling by ``period`` leaves in waveforms, pictures or volumes.

    The definition is that of :func:`pixelize.checkerboard` with one factor for each axis: at each multiple f
    of 1/period, one of each pair f, -f, the power S(f) under a Hann window over the median of
    sqrt(S(f + d) S(f - d)) around it, in dB. White noise measures about 0 dB, and so does what lies smoothly
    over its spectrum.

    - Pictures and volumes: ``"global"``, the window as large as they are, and ``"windowed"``, windows of 8
      periods that overlap by half. Offsets d are 3 or 4 bins away (2 or 3 windowed), and zero along axes
      along which f is zero when windowed. For pictures the figures are those of
      :func:`pixelize.checkerboard`.
    - Waveforms: ``"32 periods"`` and ``"256 periods"``, windows of that length that overlap by half; offsets
      of 3 to 12 bins. Long windows resolve a steady tone, short ones a pattern that comes and goes. The
      longer form is left out where a waveform is shorter.

    Args:
        data: (N, C, L), (N, C, H, W) or (N, C, D, H, W), or an iterable of such batches, of one number of
            axes. Every channel of every sample counts the same; the scale does not matter.
        period: the up-sampling factor to look for, one or one for each axis (of which some may be 1).

    Returns:
        ``{form: {f: dB}, "worst": dB}``, f with one number for each axis; ``"worst"`` is the highest figure
        of the first form.

    Raises:
        ArgumentError: a bad period, other shapes, NaN or inf, no data, or less than 8 periods (of waveforms
            32) along an axis.

    >>> stripes = torch.tensor([1.0, -1.0]).repeat(16)[:, None, None] + torch.randn(4, 1, 32, 32, 32)
    >>> levels = checkerboard_nd(stripes)
    >>> max(levels["global"], key=levels["global"].get), levels["worst"] > 10
    ((0.5, 0.0, 0.0), True)
    """
    levels = artifact_levels_nd(data, period)
    result: dict = {}
    for (form, f), level in levels.excess.items():
        result.setdefault(form, {})[f] = level
    result["worst"] = max(result[next(iter(result))].values())
    return result


def artifact_levels_nd(
    data: Tensor | Iterable[Tensor],
    period: int | Sequence[int],
    forms_of: Callable[[tuple[int, ...]], dict[str, Form]] | None = None,
) -> ArtifactLevels:
    """What :func:`checkerboard_nd` measures, as power and as the power around it: what is expected is what
    lies around.

    ``forms_of``: the forms for data of a size, where not those of :func:`checkerboard_nd`. Raises
    ArgumentError as that does.
    """
    total: dict[str, Tensor] = {}
    square, planes = 0.0, 0
    periods: tuple[int, ...] = ()
    for batch in _batches(data):
        n = batch.dim() - 2
        if periods and len(periods) != n:
            raise ArgumentError(f"data has batches of {len(periods)} axes and of {n}: measure them apart")
        periods = _as_periods(period, n)
        size = tuple(batch.shape[2:])
        forms = forms_of(size) if forms_of else forms_for(size, periods)
        if total and total.keys() != forms.keys():
            raise ArgumentError(
                "data has waveforms shorter than 256 periods and longer ones: measure them apart"
            )
        for part in batch.flatten(0, 1).split(max(1, _CHUNK // prod(batch.shape[2:]))):
            x = float64(part)
            square += float(x.square().mean(tuple(range(1, n + 1))).sum())
            planes += len(x)
            x = x - x.mean(tuple(range(1, n + 1)), keepdim=True)
            for name, form in forms.items():
                seen = _power(x, form, periods)
                total[name] = total[name] + seen if name in total else seen
    if not planes:
        raise ArgumentError("There is nothing to measure: data is empty.")
    least = _FLOOR * square or 1.0  # all-zero data has no pattern
    power: dict[Level, float] = {}
    around: dict[Level, float] = {}
    for name, form in forms.items():
        for f in frequencies_nd(periods):
            at, beside = _at_and_around(total[name], f, form.ring, name == WINDOWED)
            power[name, f], around[name, f] = (at + least) / planes, (beside + least) / planes
    excess = {c: decibels(power[c] / around[c]) for c in power}
    return ArtifactLevels(excess, power, around, around)


def _batches(data: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in [data] if isinstance(data, Tensor) else data:
        if not isinstance(batch, Tensor) or not 3 <= batch.dim() <= 5 or batch.is_complex():
            told = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ArgumentError(
                f"data holds {told}; it takes tensors (N, C, L), (N, C, H, W) or (N, C, D, H, W)"
            )
        if not torch.isfinite(batch).all():
            raise ArgumentError("data holds NaN or inf: find out which layer makes them")
        if batch.numel():
            yield batch.detach()


def _as_periods(period: int | Sequence[int], n: int) -> tuple[int, ...]:
    periods = (period,) * n if isinstance(period, int) else tuple(period)
    whole = all(isinstance(p, int) and not isinstance(p, bool) and p >= 1 for p in periods)
    if len(periods) != n or not whole or max(periods) < 2:
        raise ArgumentError(
            f"period={period!r}: it is the up-sampling factor, a whole number from 2 on, or one for each of "
            f"the {n} axes, of which not all may be 1"
        )
    return periods


def forms_for(size: tuple[int, ...], periods: tuple[int, ...]) -> dict[str, Form]:
    """The forms of the measure for data of that size. Raises ArgumentError for too little."""
    if len(size) == 1:
        forms = {f"{count} periods": Form((count * periods[0],), LINE_RING) for count in (32, 256)}
        forms = {name: form for name, form in forms.items() if form.window[0] <= size[0]}
        least: tuple[int, ...] = (32 * periods[0],)
    else:
        least = tuple(8 * max(2, p) for p in periods)
        forms = {GLOBAL: Form(size, RING[GLOBAL]), WINDOWED: Form(least, RING[WINDOWED])}
    if any(a < b for a, b in zip(size, least, strict=True)):
        raise ArgumentError(
            f"data of size {size} is too small for period {periods}: it takes {least} samples"
        )
    return forms


def frequencies_nd(periods: tuple[int, ...]) -> list[Frequency]:
    """The artifact's frequencies, one of each pair f, -f, in rising order."""
    zero = (0,) * len(periods)
    found = product(*map(range, periods))
    kept = [f for f in found if zero < f <= tuple(-j % p for j, p in zip(f, periods, strict=True))]
    return [tuple(j / p for j, p in zip(f, periods, strict=True)) for f in kept]


def _power(x: Tensor, form: Form, periods: tuple[int, ...]) -> Tensor:
    """Power at and around the multiples of 1/period, (p, bins, p, bins, ..), of ``x`` (planes, *size): the
    mean over windows, summed over planes.
    """
    reach = form.ring[1]
    hops = [max(1, w // 2) for w in form.window]
    *starts, _ = (
        range(0, size - w + 1, hop) for size, w, hop in zip(x.shape[1:], form.window, hops, strict=True)
    )
    total, count = x.new_zeros(()), 0
    for corner in product(*starts):
        cut = (slice(None), *(slice(a, a + w) for a, w in zip(corner, form.window, strict=False)))
        windows = x[cut].unfold(-1, form.window[-1], hops[-1]).movedim(-2, 1)
        y = windows.to(torch.complex128)
        for period in periods:  # the next axis goes, its frequencies come last
            y = _transformed(y, period, reach)
        power = y.abs().square()
        total, count = total + power.sum((0, 1)), count + power.shape[1]
    shape = [length for p in periods for length in (p, 2 * reach + 1)]
    return (total / count).reshape(shape)


def _transformed(y: Tensor, period: int, reach: int) -> Tensor:
    """Axis 2 under a Hann window at and around the multiples of 1/period, which come last: by a fast Fourier
    transform where the matrix would be large and they are among its frequencies.
    """
    size = y.shape[2]
    if size < _LONG or size % period:
        return torch.tensordot(y, windowed_dft(size, period, reach, y.real), ([2], [1]))
    hann = torch.hann_window(size, periodic=True, dtype=torch.float64, device=y.device)
    offsets = torch.arange(-reach, reach + 1, device=y.device)
    bins = torch.arange(0, size, size // period, device=y.device)[:, None] + offsets
    spectrum = torch.fft.fft(y.movedim(2, -1) * (hann / hann.square().sum().sqrt()))
    return spectrum[..., bins.flatten() % size]


def _at_and_around(power: Tensor, f: Frequency, ring: tuple[int, int], windowed: bool) -> tuple[float, float]:
    """The power at a frequency and around it."""
    n, reach = len(f), ring[1]
    index: list = []
    for axis, turns in enumerate(f):
        index += [round(turns * power.shape[2 * axis]), slice(None)]
    at = power[tuple(index)]
    opposite = (at * at.flip(tuple(range(n)))).sqrt()
    offsets = torch.meshgrid(*[torch.arange(-reach, reach + 1, device=at.device)] * n, indexing="ij")
    distance = torch.stack([o.abs() for o in offsets]).amax(0)
    around = (distance >= ring[0]) & (distance <= ring[1])
    if windowed:
        for offset, turns in zip(offsets, f, strict=True):
            around &= (offset == 0) | (turns != 0)
    return float(at[(reach,) * n]), float(opposite[around].median())
