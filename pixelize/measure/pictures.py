"""Pictures of which nothing is known but themselves: which pattern do they show, how strong, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import (
    GLOBAL,
    WINDOWED,
    ArtifactPower,
    Frequency,
    artifact_power,
    excess,
    frequencies,
    frequency_name,
    minimum_size,
)
from pixelize.measure.decibels import decibels
from pixelize.measure.local_map import checkerboard_map
from pixelize.measure.natural import NOTICEABLE, natural_excess
from pixelize.measure.planes import Images, picture_batches, planes_of
from pixelize.tables import Table

PERIODS = (2, 3, 4, 8, 16)
"""Up-sampling factors whose patterns are looked for, in pixels."""
FALSE_ALARMS = 1e-3
"""Chance that pictures without any pattern are said to have one, over all frequencies together."""

ROUNDING = 5e-6
"""Power, as a share of pictures' mean square, that rounding to 8 bits leaves at each frequency: (1/255)^2 /
12 of pictures from 0 to 1 (more from -1 to 1). What lies below cannot be seen."""
_ERRORS = 4.0
"""Standard errors of what is around in windows: on an axis the median of four bins, of n draws each, about
4.3 / sqrt(n) dB."""
GAP = 10.0
"""Decibels below natural in windows from which a frequency lies in a gap of the spectrum: nobody sees what
stands out there."""
FAINT = -80.0
"""Decibels of a waveform's power below which no tone is heard: of loud speech, 75 dB, it has -5 dB, about the
threshold of hearing where that is lowest (ISO 389-7)."""
MADE = {1: ("waveforms", "samples"), 2: ("pictures", "pixels"), 3: ("volumes", "voxels")}
"""What is measured, and what it is made of, by the number of axes."""
LOW = 1 / 8
"""Cycles per pixel: a pattern as slow as this may be content, such as faces that are all at one place."""


@dataclass(frozen=True)
class PatternLevel:
    """One frequency: decibels over the natural level, over the whole picture and in windows.

    ``threshold``: what a level (of either form, in the order of ``levels``) must exceed to be called a
    pattern: :data:`~pixelize.measure.natural.NOTICEABLE`, and what so few pictures may show by chance.

    Of waveforms ``wide`` is the level over a wider neighbourhood, where one exceeds its threshold, and
    ``tone`` the tone's power over that of the whole waveform, in decibels.
    """

    frequency: tuple[float, ...]
    period: int
    levels: dict[str, float]
    threshold: dict[str, float]
    wide: float | None = None
    tone: float | None = None

    @property
    def noticeable(self) -> bool:
        """Whether one of the levels exceeds its threshold, outside of gaps in the spectrum, and if it is a
        tone it is loud enough to be heard."""
        wide = self.levels.get(WINDOWED, 0.0) if self.wide is None else self.wide
        return self.over > 0 and wide > -GAP and (self.tone is None or self.tone > FAINT)

    @property
    def over(self) -> float:
        """Decibels over the threshold, of the form that is further over."""
        return max(self.levels[form] - self.threshold[form] for form in self.levels)

    @property
    def name(self) -> str:
        """``"(0,1/2)"``: cycles per pixel down and across."""
        return frequency_name(self.frequency)


@dataclass(frozen=True)
class PictureLevels:
    """What :func:`measure_pictures` found: every frequency once, at the shortest period that has it.

    ``axes``: 1 where waveforms were measured, 3 for volumes.
    """

    pictures: int
    patterns: tuple[PatternLevel, ...]
    left_out: tuple[int, ...] = ()
    axes: int = 2

    @property
    def noticeable(self) -> list[PatternLevel]:
        """The patterns that stand out, strongest first."""
        return sorted((p for p in self.patterns if p.noticeable), key=lambda p: -p.over)

    def sentence(self) -> str:
        """The verdict in one sentence."""
        found = self.noticeable
        if not found:
            return "no pattern of up-sampling stands out"
        worst = found[0]
        told = f"a pattern of {worst.period} {MADE[self.axes][1]} at {worst.name}: " + ", ".join(
            f"{level:.1f} dB over natural ({form})" for form, level in worst.levels.items()
        )
        if worst.tone is not None:
            told += f", {-worst.tone:.0f} dB below the sound itself"
        if len(found) > 1:
            told += f", and {len(found) - 1} more frequencies"
        if all(min(v, 1 - v) <= LOW for p in found for v in p.frequency):
            told += f" (as slow a pattern may be content: compare with real {MADE[self.axes][0]})"
        return told

    def table(self, most: int = 12) -> Table:
        """The ``most`` strongest frequencies."""
        rows = sorted(self.patterns, key=lambda p: -p.over)[:most]
        forms = max((list(p.levels) for p in self.patterns), key=len, default=[])
        cells = [
            (
                p.name, str(p.period), *(f"{p.levels[f]:+.1f}" if f in p.levels else "" for f in forms),
                *([f"{p.tone:+.0f}"] if p.tone is not None else []), "yes" if p.noticeable else "",
            )
            for p in rows
        ]  # fmt: skip
        tone = ["of the sound, dB"] if any(p.tone is not None for p in rows) else []
        return Table(("frequency", "period", *(f"{f}, dB" for f in forms), *tone, "stands out"), cells)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data that ``json.dumps`` takes."""
        return {
            "pictures": self.pictures,
            "verdict": self.sentence(),
            "periods_left_out": list(self.left_out),
            "patterns": [
                {**asdict(p), "frequency": p.name, "stands_out": p.noticeable} for p in self.patterns
            ],
        }


def measure_pictures(images: Images, periods: Sequence[int] = PERIODS) -> PictureLevels:
    """Measures pictures, frames or a whole set of them at each period that they are large enough for.

    Levels are over what is natural at a frequency (:mod:`pixelize.measure.natural`), by both forms of
    :func:`pixelize.checkerboard`.

    Args:
        images: as for :func:`pixelize.checkerboard`; read once, a batch at a time. Pictures of several sizes
            are measured together; those that are too small for a period are left out there.
        periods: to look for. A period needs pictures of 8 periods.

    Raises:
        ArgumentError: no images, NaN or inf, or all smaller than 16 pixels.
    """
    totals: dict[int, ArtifactPower] = {}
    counts = dict.fromkeys(periods, 0)
    windows = dict.fromkeys(periods, 0.0)
    pictures = 0
    for batch in picture_batches(images):
        height, width = batch.shape[-2:]
        pictures += len(batch)
        for period in periods:
            least = minimum_size((period, period))[0]
            if batch.numel() == 0 or min(height, width) < least:
                continue
            counts[period] += len(batch)
            windows[period] += len(batch) * max(1.0, height * width / least**2)
            for planes in planes_of(batch, (least, least)):
                power = artifact_power(planes, (period, period))
                totals[period] = totals[period] + power if period in totals else power
    if not pictures:
        raise ArgumentError("There are no images to measure: the iterable or the batch is empty.")
    if not totals:
        least = minimum_size((min(periods),) * 2)[0]
        raise ArgumentError(f"all pictures are too small: {least}x{least} pixels are needed at least")
    tests = 2 * sum(len(frequencies(p)) for p in totals)
    found: dict[Frequency, PatternLevel] = {}
    for period, total in sorted(totals.items()):
        measured = excess(total, (period, period), ROUNDING)
        threshold = {
            GLOBAL: NOTICEABLE + by_chance(counts[period], tests),
            WINDOWED: NOTICEABLE + by_chance(windows[period], tests) + _ERRORS * 4.3 / windows[period] ** 0.5,
        }
        for f in frequencies(period):
            levels = {form: float(measured[form, f]) - natural_excess(form, f, period) for form in threshold}
            found.setdefault(_rounded(f), PatternLevel(f, period, levels, threshold))
    return PictureLevels(pictures, tuple(found.values()), tuple(p for p in periods if p not in totals))


def by_chance(pictures: float, tests: int, rate: float = FALSE_ALARMS) -> float:
    """Decibels by which the mean power of so many pictures exceeds its median by chance, at one of ``tests``
    frequencies, in a share ``rate`` of all cases.

    A picture's power at a frequency is exponentially distributed, the mean of n pictures as Gamma(n, 1/n):
    the level x is sought with P(Gamma(n) > n x) = rate / tests.
    """
    n = torch.tensor(float(pictures), dtype=torch.float64)
    low, high = torch.tensor(1e-3, dtype=torch.float64), torch.tensor(1e3, dtype=torch.float64)
    quantiles = []
    for share in (0.5, rate / tests):
        below, above = low, high
        for _ in range(60):
            middle = (below * above).sqrt()
            if torch.special.gammaincc(n, n * middle) > share:
                below = middle
            else:
                above = middle
        quantiles.append(float(above))
    return decibels(quantiles[1] / quantiles[0])


def where(picture: Tensor | np.ndarray, period: int, cells: int = 8) -> list[list[float]]:
    """A coarse map of the pattern over one picture ``(C, H, W)`` or ``(H, W)``, in rows: its root mean
    square amplitude by cell, in the picture's units.

    :func:`~pixelize.measure.local_map.checkerboard_map` has it for each pixel.
    Raises ArgumentError as :func:`pixelize.checkerboard`.
    """
    amplitude = checkerboard_map(picture, period)
    return F.adaptive_avg_pool2d(amplitude.square()[None], cells)[0].sqrt().tolist()


def _rounded(f: Frequency) -> Frequency:
    return round(f[0], 9), round(f[1], 9)
