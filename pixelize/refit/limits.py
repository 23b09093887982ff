"""Every number that a repair is steered by, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pixelize.measure.checkerboard import GLOBAL, WINDOWED


@dataclass(frozen=True)
class RepairLimits:
    """What a repair may take, how far it goes, and what it is judged by.

    Decibels are of power, over the level that is natural at a frequency.
    """

    samples: int = 1024
    """Samples taken of the data at most; the rest is not read."""
    input_bytes: int = 256 * 2**20
    kept_bytes: int = 512 * 2**20
    """Bytes of inputs, and of what stands before the refitted layers, that are kept at most."""
    graph_bytes: int = 384 * 2**20
    """Bytes that one batch may keep for its gradient."""
    multiply_adds: float = 1.2e12
    """What all rounds together may compute: about a minute on two cores."""
    held: int = 256
    """Samples held back at most, to judge by."""
    portion: int = 192
    """Samples that one round of the fit sees at most."""
    batch: int = 32
    """Samples run at once at most."""
    few: int = 24
    """Samples below which the report warns."""
    side: int = 128
    """Pictures larger than this are repaired on pieces of about this side, where the model allows."""
    depth: int = 48
    """As ``side``, of volumes; waveforms are cut to 256 periods."""
    period: int = 16
    """The longest pattern looked for, in pixels; a picture must hold eight periods."""
    line_period: int = 64
    """As ``period``, of waveforms, in samples; a waveform must hold 32 periods."""
    steady: tuple[float, ...] = tuple(10 ** (third / 3) for third in range(15, -1, -1))
    """Weights tried of the pattern against the change of the picture, where there is a closed form."""
    layers: int = 8
    """Layers refitted together at most."""
    share: float = 0.02
    """Of the best layer's expected gain that another must have to be refitted too."""
    spare: float = 1.0
    """Decibels that are left alone, beside twice the standard error of the measure."""
    rounds: int = 24
    first_rounds: int = 3
    """Rounds on the way there, left out of the average over rounds."""
    patience: int = 4
    """Rounds without progress that end the fit."""
    progress: float = 0.02
    """Share of the cost by which it must fall to count as progress."""
    done: float = 0.02
    """Share of the cost that is not worth another round."""
    worth: float = 0.25
    """Share of the cost that a refit must take away: what cannot be taken is likely the pictures' content."""
    steps: int = 7
    """Steps of L-BFGS in a round."""
    dear: float = 4.0
    """A refit may change the pictures by so many times the power of the pattern itself: what goes beyond is
    no pattern."""
    pays: float = 1.5
    """As ``dear``, beyond which it must pay: doubling the change must halve what is left. Rounds that change
    more learn the samples by heart."""
    unseen: float = 64.0
    """With n samples the levels are brought lower by 1 + ``unseen`` / n, up to ``furthest`` decibels: on
    pictures not seen they are higher than on those held back, the more so the fewer there are."""
    furthest: float = 6.0
    further: float = 0.0
    """Decibels by which they are: set by :meth:`with_samples`."""
    worse: float = 0.5
    """Decibels by which a frequency may come to stand out more than before; above that each counts
    ``worse_price`` times."""
    worse_price: float = 3.0
    hole: float = 3.0
    """Decibels under the natural level, or under what was there before, that a repair should not go."""
    fine: float = 0.3
    """Decibels over the aim that cost nothing."""
    failure: float = 10.0
    """A picture with so many times the usual prominence at a frequency is left out: a generator's failure."""
    ridge: float = 0.3
    """Price of the coordinates themselves; 1 is about what the change of the picture costs. Raised by
    ``1 + few / samples``."""
    largest: int = 1152
    """Features of one output that are whitened exactly; more are whitened as channels times taps."""
    whitening: float = 0.5
    """How much more a change counts where there is little power: 0 for least squares in pixels, 1 for a
    relative change."""
    spectrum: float = 200.0
    """Weight of the power spectrum away from the artifact's frequencies."""

    change: float = 6.3e-5
    """Mean square change, as a share of the squared range of the pictures, that is always allowed (42 dB)."""

    def longest(self, size: tuple[int, ...]) -> int:
        """The longest pattern looked for in pictures, volumes or waveforms of a size."""
        if len(size) == 1:
            return min(self.line_period, size[0] // 32)
        return min(self.period, min(size) // 8)

    def piece(self, axes: int, period: int) -> int:
        """The side of pieces that are cut of what is larger."""
        return 256 * period if axes == 1 else max(self.side if axes == 2 else self.depth, 8 * period)

    def aim(self, kind: str) -> float:
        """Decibels over the natural level that a refit aims at."""
        return {GLOBAL: -0.5 - self.further, WINDOWED: -0.5 * self.further}[kind]

    def with_samples(self, samples: int) -> RepairLimits:
        """For so many samples: the fewer, the lower the levels aimed at."""
        return replace(self, further=min(10 * math.log10(1 + self.unseen / samples), self.furthest))

    def fall(self, kind: str) -> float:
        """Decibels by which the level around a pattern is believed to fall with it."""
        return {GLOBAL: 20.0, WINDOWED: 2.0}[kind]
