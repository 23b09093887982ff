"""The checkerboard artifact of pictures as numbers, in dB (global and windowed forms)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.planes import Images, image_planes

Frequency = tuple[float, float]
"""(vertical, horizontal), in cycles per pixel: (0.0, 0.5) changes sign from column to column."""

_FLOOR = 1e-12  # of the mean square: less than 16-bit pictures hold, more than float32's rounding
GLOBAL, WINDOWED = "global", "windowed"
"""The two forms of the measure, see :func:`checkerboard`."""
RING = {GLOBAL: (3, 4), WINDOWED: (2, 3)}
"""Bins away from a frequency, where the neighbourhood that it is compared with begins and ends."""


def checkerboard(images: Images, period: int | tuple[int, int] = 2) -> dict:
    """Measure the pattern that up-sampling by ``period`` leaves in pictures.

    Up-sampling with stride s leaves energy at the multiples of 1/s. At each such frequency
    f = (j/p_h, k/p_w) except (0, 0), and of each pair f, -f only once, the measure is

        10 log10( (S(f) + e) / (median of Q(d) over the neighbourhood + e) )    [dB]
        S(f) = mean of |sum_n w(n) (x(n) - mean of x) exp(-2 pi i f.n)|^2 / sum_n w(n)^2
        Q(d) = sqrt(S(f + d) S(f - d))

    with w a periodic Hann window, the mean of S taken over pictures and channels. S is evaluated at f itself,
    whatever the picture's size: f need not fall on a bin of the picture's DFT. Q cancels the slope of the
    spectrum (for period 2, Q(d) = S(f + d)).

    - ``"global"``: w is as large as the picture, H x W. Neighbourhood: the 56 offsets d = (a/H, b/W) with
      max(|a|, |b|) equal to 3 or 4. It sees a pattern that keeps its sign all over the picture.
    - ``"windowed"``: w has 8 periods (16x16 for period 2; 16 along an axis of period 1), windows overlap by
      half, and S is averaged over them too (Welch). Neighbourhood: the 40 offsets of 2 or 3 bins of the
      window; for a frequency on an axis, (0, v) or (u, 0), the four along that axis. It also sees a pattern
      whose sign changes over the picture. Pixels that the last whole window leaves over are not seen.

    The median of an even number of values is the lower of the middle two. e is 1e-12 of the pictures' mean
    square: it keeps every figure finite, and pictures without any detail measure 0 dB.

    Real photographs measure about 0 dB globally (a single one is a single draw: several dB up, many down)
    and, since spectra fall along the axes, -3 to -5 dB windowed with period 2. Compare with real pictures of
    the same kind rather than with 0.

    Args:
        images: ``(N, C, H, W)``, ``(C, H, W)`` or ``(H, W)``, a tensor on any device or an array, of any real
            dtype; or an iterable of such, measured as one set with one item in memory at a time. The scale
            does not matter. Items may differ in size: every channel of every picture counts the same.
        period: the up-sampling factor to look for, one or (vertical, horizontal).

    Returns:
        ``{"global": {f: dB}, "windowed": {f: dB}, "worst": dB}``, f as (vertical, horizontal) floats
        in [0, 1): for period 2 ``(0.0, 0.5)``, ``(0.5, 0.0)``, ``(0.5, 0.5)``. ``"worst"`` is the highest
        global figure.

    Raises:
        ArgumentError: a bad period, NaN or inf, no images, or pictures smaller than 8 periods (and 16
            pixels).

    >>> stripes = torch.tensor([1.0, -1.0]).repeat(32, 16) + torch.randn(32, 32)
    >>> checkerboard(stripes)["worst"] > 10
    True
    """
    periods = as_periods(period)
    return result_of(total_power(images, periods), periods)


def as_periods(period: int | tuple[int, int]) -> tuple[int, int]:
    """``period`` as (vertical, horizontal).

    Raises:
        ArgumentError: not one or two positive whole numbers, or both 1.
    """
    periods = (period, period) if isinstance(period, int) else period
    valid = (
        isinstance(periods, tuple | list)
        and len(periods) == 2
        and all(isinstance(p, int) and not isinstance(p, bool) and p >= 1 for p in periods)
        and max(periods) > 1
    )
    if not valid:
        raise ArgumentError(
            f"period={period!r}: it is the up-sampling factor, a whole number from 2 on, or a pair "
            "(vertical, horizontal) of which one may be 1."
        )
    return int(periods[0]), int(periods[1])


def minimum_size(periods: tuple[int, int]) -> tuple[int, int]:
    """The smallest picture, and the window of the windowed form: 8 periods, 16 pixels where the period is 1.

    Artifact frequencies are then 8 bins apart or more, so that no neighbourhood holds another's peak.
    """
    return tuple(8 * max(2, p) for p in periods)  # type: ignore[return-value]


def frequencies(period: int | tuple[int, int] = 2) -> list[Frequency]:
    """The artifact's frequencies (vertical, horizontal) in [0, 1), one of each pair f, -f, in rising order.

    >>> frequencies(2)
    [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]
    """
    rows, columns = as_periods(period)
    kept = []
    for j in range(rows):
        for k in range(columns):
            if (0, 0) < (j, k) <= (-j % rows, -k % columns):
                kept.append((j / rows, k / columns))
    return kept


def window_sizes(height: int, width: int, period: int) -> dict[str, tuple[int, int]]:
    """By form, the windows for pictures of this size in which the artifact's frequencies fall on bins: the
    picture cropped to whole periods, and 8 periods (16 pixels at least)."""
    whole = (height // period * period, width // period * period)
    return {GLOBAL: whole, WINDOWED: minimum_size((period, period))}


def frequency_name(frequency: tuple[float, ...]) -> str:
    """``"(0,1/2)"`` for ``(0.0, 0.5)``: for tables, tags and file names."""
    return f"({','.join(str(Fraction(f).limit_denominator(4096)) for f in frequency)})"


@dataclass(frozen=True)
class ArtifactPower:
    """Sums over planes, all that :func:`excess` needs; they add up over batches and over processes.

    ``whole`` ``(p_h, 9, p_w, 9)`` and ``windowed`` ``(p_h, 7, p_w, 7)``: power at j/p_h + a bins, k/p_w + b
    bins, in the images' units squared (white noise of variance v has power v everywhere). ``mean_square`` and
    ``planes``, the number of planes summed over, are 0-dimensional.
    """

    whole: Tensor
    windowed: Tensor
    mean_square: Tensor
    planes: Tensor

    @property
    def by_form(self) -> dict[str, Tensor]:
        """``whole`` and ``windowed`` by the form of the measure that they belong to."""
        return {GLOBAL: self.whole, WINDOWED: self.windowed}

    def __add__(self, other: ArtifactPower) -> ArtifactPower:
        return ArtifactPower(
            self.whole + other.whole.to(self.whole.device),
            self.windowed + other.windowed.to(self.whole.device),
            self.mean_square + other.mean_square.to(self.whole.device),
            self.planes + other.planes.to(self.whole.device),
        )


def artifact_power(planes: Tensor, periods: tuple[int, int]) -> ArtifactPower:
    """Sum the power at and around the artifact's frequencies over ``planes`` ``(n, H, W)``, float64."""
    size = (planes.shape[-2], planes.shape[-1])
    centred = planes - planes.mean((-2, -1), keepdim=True)
    window = minimum_size(periods)
    whole = next(strip_powers(centred, periods, size, size, RING[GLOBAL][1]))
    strips = [
        strip.mean(1)
        for strip in strip_powers(
            centred, periods, window, (window[0] // 2, window[1] // 2), RING[WINDOWED][1]
        )
    ]
    return ArtifactPower(
        whole=whole[:, 0].sum(0),
        windowed=torch.stack(strips).mean(0).sum(0),
        mean_square=planes.square().mean((-2, -1)).sum(),
        planes=torch.tensor(float(len(planes)), dtype=torch.float64, device=planes.device),
    )


def total_power(images: Images, periods: tuple[int, int]) -> ArtifactPower:
    """:func:`artifact_power` of all ``images``, some at a time. Raises ArgumentError as
    :func:`checkerboard`."""
    planes = image_planes(images, minimum_size(periods))
    total = artifact_power(next(planes), periods)  # image_planes yields or raises
    for more in planes:
        total = total + artifact_power(more, periods)
    return total


def strip_powers(
    planes: Tensor, periods: tuple[int, int], window: tuple[int, int], hop: tuple[int, int], reach: int
) -> Iterator[Tensor]:
    """Hann-windowed power at the artifact's frequencies and up to ``reach`` bins of ``window`` around them.

    ``planes``: ``(n, H, W)``. For each row of windows, from the top, yields a tensor
    ``(n, windows in the row, p_h, 2 reach + 1, p_w, 2 reach + 1)``. The sum separates into one product per
    axis.
    """
    height = planes.shape[-2]
    vertical, horizontal = (
        windowed_dft(window[axis], periods[axis], reach, planes) for axis in (0, 1)
    )  # (p (2 reach + 1), window)
    bins = 2 * reach + 1
    for top in range(0, height - window[0] + 1, hop[0]):
        strip = planes[:, top : top + window[0]].unfold(-1, window[1], hop[1])  # (n, wh, windows, ww)
        strip = strip.transpose(1, 2)
        along = torch.complex(strip @ horizontal.real.T, strip @ horizontal.imag.T)
        power = (vertical @ along).abs().square()
        yield power.reshape(*power.shape[:2], periods[0], bins, periods[1], bins)


def windowed_dft(size: int, period: int, reach: int, like: Tensor) -> Tensor:
    """Rows w(n) exp(-2 pi i f n) / sqrt(sum w^2) for f = j/period + a/size, abs(a) <= reach: complex128."""
    # n j / period is taken modulo 1 in whole numbers, so that long pictures lose no precision.
    n = torch.arange(size, device=like.device)
    peak = (torch.arange(period, device=like.device)[:, None] * n % period).double() / period
    offset = (torch.arange(-reach, reach + 1, device=like.device)[:, None] * n % size).double() / size
    turns = (peak[:, None] + offset[None]).reshape(-1, size)
    hann = torch.hann_window(size, periodic=True, dtype=torch.float64, device=like.device)
    return torch.polar((hann / hann.square().sum().sqrt()).expand_as(turns), -2 * torch.pi * turns)


def peak_and_around(
    power: Tensor, frequency: Frequency, periods: tuple[int, int], form: str
) -> tuple[Tensor, Tensor]:
    """S(f) and the median of Q(d) over the neighbourhood that ``form`` compares it with.

    ``power``: ``(..., p_h, bins, p_w, bins)``, the power at and around the artifact's frequencies, as
    :class:`ArtifactPower` has it. Two tensors ``(...)``.
    """
    at = power[..., round(frequency[0] * periods[0]), :, round(frequency[1] * periods[1]), :]
    reach = at.shape[-1] // 2
    opposite = (at * at.flip(-2, -1)).sqrt()
    mask = _neighbourhood(frequency, reach, form).to(at.device)
    return at[..., reach, reach], opposite[..., mask].median(-1).values


def _neighbourhood(frequency: Frequency, reach: int, form: str) -> Tensor:
    """Boolean mask ``(2 reach + 1, 2 reach + 1)`` of the bins that a frequency is compared with."""
    offset = torch.arange(-reach, reach + 1)
    vertical, horizontal = torch.meshgrid(offset, offset, indexing="ij")
    distance = torch.maximum(vertical.abs(), horizontal.abs())
    mask = (distance >= RING[form][0]) & (distance <= RING[form][1])
    if form == WINDOWED and 0 in frequency:
        mask &= (vertical if frequency[0] == 0 else horizontal) == 0
    return mask


def excess(
    power: ArtifactPower, periods: tuple[int, int], floor: float = _FLOOR
) -> dict[tuple[str, Frequency], Tensor]:
    """The figures of :func:`checkerboard` in dB by form and frequency, 0-dimensional.

    ``floor``: power, as a share of the pictures' mean square, that counts as nothing (the e of the formula).
    Differentiable in the power at the frequency alone: a picture is not to be mended by raising what lies
    around it.
    """
    mean_square = power.mean_square.detach()
    # all-zero pictures leave nothing to compare: no pattern, 0 dB
    least = torch.where(mean_square > 0, floor * mean_square, torch.ones_like(mean_square))
    found = {}
    for form, table in power.by_form.items():
        for f in frequencies(periods):
            peak, around = peak_and_around(table, f, periods, form)
            found[form, f] = 10 * ((peak + least) / (around.detach() + least)).log10()
    return found


def result_of(power: ArtifactPower, periods: tuple[int, int]) -> dict:
    """From sums of power to the dictionary of :func:`checkerboard`."""
    result: dict = {GLOBAL: {}, WINDOWED: {}}
    for (form, f), level in excess(power, periods).items():
        result[form][f] = float(level)
    result["worst"] = max(result[GLOBAL].values())
    return result
