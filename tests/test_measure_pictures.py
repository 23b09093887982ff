"""Pictures of unknown origin: a pattern of any plausible period is found and placed; clean ones pass."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import frequencies
from pixelize.measure.pictures import by_chance, measure_pictures, where


def smooth(n: int, height: int, width: int, seed: int) -> Tensor:
    """Pictures (n, 3, H, W) with a falling spectrum."""
    x = torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    return torch.fft.irfft2(torch.fft.rfft2(x) / (0.02 + down**2 + across**2).sqrt(), s=(height, width))


def wave(height: int, width: int, f: tuple[float, float]) -> Tensor:
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return torch.cos(2 * torch.pi * (f[0] * rows + f[1] * columns) + 0.4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 8])
def test_clean_pictures_show_none(count: int, seed: int) -> None:
    found = measure_pictures(smooth(count, 130, 141, seed))
    assert not found.noticeable, found.sentence()
    assert found.left_out == () and found.pictures == count


@pytest.mark.parametrize("period", [2, 3, 4, 8, 16])
def test_a_pattern_is_found_at_its_frequency(period: int) -> None:
    for seed, f in enumerate(frequencies(period)[:: max(1, period // 2)]):
        clean = smooth(4, 131, 140, seed)
        power = 10 ** (13 / 10) * 4 / (131 * 140 * 4 / 9)  # 13 dB over white noise of this variance
        f_y, f_x = ((v + 0.5) % 1 - 0.5 for v in f)
        amplitude = (power / (0.02 + f_y**2 + f_x**2)) ** 0.5
        worst = measure_pictures(clean + amplitude * wave(131, 140, f)).noticeable[0]
        assert worst.frequency == pytest.approx(f)
        assert period % worst.period == 0


def test_small_pictures_are_measured_at_the_periods_that_they_can_hold() -> None:
    found = measure_pictures([smooth(3, 40, 33, 0), smooth(2, 20, 64, 1)])
    assert found.left_out == (8, 16) and found.pictures == 5
    assert {p.period for p in found.patterns} == {2, 3, 4}
    assert len({p.name for p in found.patterns}) == len(found.patterns)
    with pytest.raises(ArgumentError, match="16x16"):
        measure_pictures(torch.rand(1, 3, 15, 90))
    with pytest.raises(ArgumentError, match="no images"):
        measure_pictures([])


def test_what_is_found_is_plain_data() -> None:
    data = json.loads(json.dumps(measure_pictures(smooth(2, 32, 32, 0)).to_dict()))
    assert data["pictures"] == 2 and {"frequency", "levels", "stands_out"} <= data["patterns"][0].keys()


def test_the_coarse_map_shows_where() -> None:
    picture = 0.1 * smooth(1, 128, 96, 0)[0]
    picture[:, 64:, 48:] += 0.5 * wave(64, 48, (0.5, 0.5))
    cells = torch.tensor(where(picture, 2, cells=4))
    assert cells.shape == (4, 4)
    assert cells[3, 3] > 5 * cells[:2, :2].max() and cells.argmax() in (10, 11, 14, 15)


@pytest.mark.parametrize("pictures", [1, 4, 30])
def test_chance_is_that_of_exponential_draws(pictures: int) -> None:
    torch.manual_seed(0)
    draws = torch.distributions.Exponential(1.0).sample((200_000, pictures)).mean(1)
    level = 10 ** (by_chance(pictures, tests=1, rate=0.01) / 10) * draws.median()
    assert (draws > level).double().mean() == pytest.approx(0.01, rel=0.15)
