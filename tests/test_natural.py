"""Decibels, PSNR and natural levels: one definition each, the same as the public measure's."""

from __future__ import annotations

import math

import pytest
import torch

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import GLOBAL, checkerboard, frequencies
from pixelize.measure.decibels import LIMIT, decibels, psnr
from pixelize.measure.natural import artifact_levels


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ratio", [1e-3, 0.5, 1.0, 7.0])
def test_decibels_of_any_ratio_are_finite(ratio: float) -> None:
    assert 10 ** (decibels(ratio) / 10) == pytest.approx(ratio)
    assert decibels(0.0) == -LIMIT and decibels(math.inf) == LIMIT


def test_psnr_is_that_of_its_formula() -> None:
    before = [noise(2, 3, 5, 4), noise(1, 3, 5, 4) + 1]
    after = [b + 0.1 for b in before]
    assert psnr(before, after, peak=2.0) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-4)
    span = float(torch.cat(before).max() - torch.cat(before).min())
    assert psnr(before, after) == pytest.approx(20 * math.log10(span / 0.1), abs=1e-4)
    assert psnr(before, before) == math.inf


@pytest.mark.parametrize("period", [2, 3, 4])
def test_levels_are_those_of_the_public_measure(period: int) -> None:
    pictures = [noise(3, 2, 40, 43), noise(2, 2, 40, 43)]
    levels, measured = artifact_levels(pictures, period), checkerboard(pictures, period)
    for f in frequencies(period):
        assert levels.excess[GLOBAL, f] == pytest.approx(measured[GLOBAL][f], abs=1e-6)


def test_pictures_without_detail_are_natural_and_broken_ones_refused() -> None:
    flat = artifact_levels([torch.full((2, 1, 32, 32), 0.3)], 2)
    assert all(level < 5 for level in flat.excess.values())
    assert all(math.isfinite(v) and v > 0 for v in (*flat.power.values(), *flat.natural.values()))
    with pytest.raises(ArgumentError, match="NaN"):
        artifact_levels([torch.full((1, 1, 32, 32), math.nan)], 2)
