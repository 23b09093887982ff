"""Pictures of unknown origin: a pattern of any plausible period is found and placed; clean ones pass."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.measure.any_levels import measure_any
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


def sound(n: int, length: int, seed: int) -> Tensor:
    """Waveforms (n, 1, L) with a falling spectrum, silent and loud by turns as speech is."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, length, generator=g)
    f = torch.fft.rfftfreq(length)
    loud = torch.randn(n, 1, length // 800 + 2, generator=g).mul(2).exp()
    loud = torch.nn.functional.interpolate(loud, size=length, mode="linear")
    return loud * torch.fft.irfft(torch.fft.rfft(x) / (0.01 + f), n=length)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "length"), [(1, 700), (3, 5000), (6, 22050)])
def test_sounds_without_a_tone_show_none(count: int, length: int, seed: int) -> None:
    found = measure_any(sound(count, length, seed))
    assert not found.noticeable, found.sentence()
    assert found.pictures == count and found.axes == 1


@pytest.mark.parametrize(("k", "period"), [(1, 2), (3, 8), (2, 5), (13, 32), (29, 64)])
def test_a_tone_is_found_and_its_power_told(k: int, period: int) -> None:
    t = torch.arange(22050)
    waves = [sound(1, 22050, seed) for seed in range(3)] + [sound(2, 3000, 9)]  # of two lengths
    square = sum(float(w.square().mean()) * len(w) for w in waves) / 5
    tone = (0.03 * square) ** 0.5 * torch.cos(2 * torch.pi * k * t / period)
    tone = tone * 2**0.5 if period > 2 else tone
    found = measure_any([w + tone[: w.shape[-1]] for w in waves]).noticeable
    assert (
        len(found) == 1 and found[0].period == period and found[0].frequency == pytest.approx((k / period,))
    )
    assert found[0].tone == pytest.approx(-15.4, abs=0.6)  # 0.03 of it, with it


def test_what_stands_out_in_a_gap_of_the_spectrum_is_no_pattern() -> None:
    f = torch.fft.rfftfreq(16000)
    shape = ((f - 0.25).abs() * 20).clamp(1e-3, 1) ** 2  # a hole around 1/4 ...
    waves = torch.fft.irfft(torch.fft.rfft(torch.randn(4, 1, 16000)) * shape, n=16000)
    waves += 2e-3 * torch.cos(torch.pi / 2 * torch.arange(16000))  # ... with a faint tone in its middle
    (at,) = (p for p in measure_any(waves).patterns if p.name == "(1/4)")
    assert at.over > 6 and at.wide < -10 and not at.noticeable


def test_volumes_are_measured_as_pictures_are() -> None:
    def volume(n: int, size: tuple[int, int, int]) -> Tensor:
        return torch.randn(n, 2, *size, generator=torch.Generator().manual_seed(n))

    clean = [volume(3, (20, 24, 18)), volume(1, (33, 32, 40))]
    assert not measure_any(clean).noticeable
    board = (-1.0) ** (torch.arange(40) + torch.zeros(33, 32, 1))
    found = measure_any([v + 0.3 * board[: v.shape[2], : v.shape[3], : v.shape[4]] for v in clean])
    assert found.noticeable[0].name == "(0,0,1/2)" and found.left_out == () and found.axes == 3
    assert "2 voxels" in found.sentence() and "frequency" in found.table().text()
    json.dumps(found.to_dict())
    assert measure_any(smooth(2, 32, 32, 0)).to_dict() == measure_pictures(smooth(2, 32, 32, 0)).to_dict()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([], "empty"),
        ([torch.zeros(1, 1, 9), torch.zeros(1, 1, 9, 9)], "all alike"),
        ([torch.zeros(1, 1, 63)], "64 samples"),
        ([torch.zeros(1, 1, 15, 20, 20)], "16 voxels"),
        ([torch.full((1, 1, 99), torch.inf)], "NaN or inf"),
        ([torch.zeros(4)], "0 axes"),
    ],
)
def test_what_cannot_be_measured_along_any_axes_is_refused(data, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        measure_any(data)
