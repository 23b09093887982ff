"""How far the pictures of a model are over the natural level at each frequency of a checkerboard."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelize.measure.spectrum import GLOBAL, Frequency, Spectrum, around, frequencies


@dataclass
class Levels:
    """Decibels over the natural level, and both powers, by kind of window and frequency."""

    excess: dict[tuple[str, Frequency], float]
    power: dict[tuple[str, Frequency], float]
    natural: dict[tuple[str, Frequency], float]

    def cost(self, natural: dict[tuple[str, Frequency], float], spare: float) -> float:
        """Sum of what is over ``natural`` by more than ``spare`` dB."""
        return sum(max(0.0, decibels(self.power[c] / natural[c]) - spare) for c in self.power)


def decibels(ratio: float) -> float:
    return 10 * math.log10(max(ratio, 1e-12))


def measure(pictures: Iterable[Tensor], windows: dict[str, tuple[int, int]], period: int) -> Levels:
    spectra = {kind: Spectrum(size, kind) for kind, size in windows.items()}
    for picture in pictures:
        for spectrum in spectra.values():
            spectrum.add(picture)
    wanted = [(kind, f) for kind in windows for f in frequencies(period)]
    power = {(k, f): spectra[k].at(f, period) for k, f in wanted}
    natural = {(k, f): spectra[k].natural(f, period) for k, f in wanted}
    return Levels({c: decibels(power[c] / natural[c]) for c in wanted}, power, natural)


def prominence(pictures: Tensor, window: tuple[int, int], period: int) -> Tensor:
    """(N, frequencies): each picture's own power at a frequency over that around it, in one window in its
    corner.

    A generator now and then fails altogether: such a picture can have more of a pattern than all others
    together.
    """
    (h, w), cut = window, pictures[..., : window[0], : window[1]]
    hann = torch.hann_window(h)[:, None] * torch.hann_window(w)
    power = torch.fft.fft2((cut - cut.mean((-2, -1), keepdim=True)) * hann).abs().square().mean(1)
    found = []
    for f in frequencies(period):
        bin = (f[0] * h // period, f[1] * w // period)
        found.append(power[:, bin[0], bin[1]] / (around(power, bin, f, GLOBAL) + 1e-30))
    return torch.stack(found, 1)
