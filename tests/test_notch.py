"""The filter that takes the pattern out of waveforms, pictures and volumes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pixelize
from pixelize.measure.notch import _blur

SIZE: dict[int, tuple[int, ...]] = {1: (6000,), 2: (48, 40), 3: (24, 24, 32)}
every = pytest.mark.parametrize("n", [1, 2, 3])


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(4, 2, *SIZE[n], generator=torch.Generator().manual_seed(seed))


def sign(n: int) -> Tensor:
    return torch.tensor([1.0, -1.0]).repeat(SIZE[n][-1] // 2)


@every
def test_a_pattern_comes_down_to_what_lies_around_it(n: int) -> None:
    x = noise(n)
    found = pixelize.notch(x + sign(n))
    before, after = (pixelize.checkerboard_nd(y) for y in (x + sign(n), found))
    assert before["worst"] > 15 and after["worst"] < 3
    assert (found - x).square().mean() < 0.1 * sign(n).square().mean()
    plain = pixelize.notch(x)
    assert (plain - x).square().mean() < 0.05 * x.square().mean()  # what has no pattern hardly changes


@every
@pytest.mark.parametrize("period", [2, 3, 5])
def test_a_steady_tone_is_taken_out_by_so_much(n: int, period: int) -> None:
    at = torch.arange(SIZE[n][-1], dtype=torch.float64)
    tone = torch.cos(2 * math.pi * at / period + 0.3).expand(1, 1, *SIZE[n])
    f = (0.0,) * (n - 1) + (1 / period,)
    sigma = 4.0 if n > 1 else 50.0
    for depth in (1.0, 0.25):
        found = pixelize.notch(tone, period, depth={f: depth}, sigma=sigma)
        middle = (..., *(slice(s // 4, -s // 4) for s in SIZE[n]))
        rest = found[middle] - (1 - depth) * tone[middle]
        assert rest.abs().max() < 0.05, (depth, rest.abs().max())
    assert torch.equal(pixelize.notch(tone, period, depth={}), tone)


def test_long_waveforms_keep_their_precision() -> None:
    """The same at the end of a minute of sound as at its beginning, in float32."""
    period, length = 7, 1_000_006
    at = torch.arange(length, dtype=torch.float64)
    tone = torch.cos(2 * math.pi * (at * 3 % period) / period).float()[None, None]
    found = pixelize.notch(tone, period, depth={(3 / period,): 1.0})
    assert found[..., 2000:-2000].abs().max() < 2e-3


@pytest.mark.parametrize("sigma", [2.0, 40.0])
def test_the_two_blurs_are_one(sigma: float) -> None:
    x = torch.randn(2, 1, 2047, dtype=torch.float64)
    longer = torch.cat([x, torch.zeros(2, 1, 1, dtype=torch.float64)], -1)
    torch.testing.assert_close(_blur(longer, sigma)[..., :-1], _blur(x, sigma), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("data", "period", "depth", "told"),
    [
        (torch.zeros(4, 64), 2, None, "notch needs"),
        (torch.zeros(1, 1, 64, dtype=torch.long), 2, None, "notch needs"),
        (torch.zeros(1, 1, 64), 2, {(0.5,): 1.5}, "between 0 and 1"),
        (torch.zeros(1, 1, 64), 2, {(0.25,): 0.5}, "needs frequencies"),
        (torch.zeros(1, 1, 20), 2, None, "too small"),
        (torch.zeros(1, 1, 64), 1, None, "up-sampling factor"),
    ],
)
def test_what_cannot_be_filtered_is_refused(data, period, depth, told) -> None:
    with pytest.raises(pixelize.ArgumentError, match=told):
        pixelize.notch(data, period, depth=depth)
