"""The measure of the artifact along one axis, two and three, against slow sums from its definition."""

from __future__ import annotations

import cmath
import math
from itertools import product
from statistics import median_low

import pytest
import torch
import torch.nn.functional as F

import pixelize
from pixelize import checkerboard, checkerboard_nd


def power(x, corner, window, turns):
    """|sum_n w(n) x(n) exp(-2 pi i f.n)|^2 / sum w^2 of one window of a nested list, by loops."""
    hann = [[0.5 - 0.5 * math.cos(2 * math.pi * i / w) for i in range(w)] for w in window]
    total, weight = 0j, 0.0
    for n in product(*map(range, window)):
        w = math.prod(h[i] for h, i in zip(hann, n, strict=True))
        value = x
        for a, i in zip(corner, n, strict=True):
            value = value[a + i]
        total += w * value * cmath.exp(-2j * math.pi * sum(f * i for f, i in zip(turns, n, strict=True)))
        weight += w * w
    return abs(total) ** 2 / weight


def level(samples, f, window, hop, ring, windowed):
    """One figure in dB, by loops over samples, windows and offsets."""
    n, size = len(f), samples[0].shape
    starts = [range(0, s - w + 1, h) for s, w, h in zip(size, window, hop, strict=True)]

    def mean_power(turns):
        values = []
        for sample in samples:
            x = (sample - sample.mean()).tolist()
            values += [power(x, corner, window, turns) for corner in product(*starts)]
        return sum(values) / len(values)

    around = []
    for d in product(range(-ring[1], ring[1] + 1), repeat=n):
        if not ring[0] <= max(map(abs, d)) <= ring[1]:
            continue
        if windowed and any(a and not turns for a, turns in zip(d, f, strict=True)):
            continue
        shift = [a / w for a, w in zip(d, window, strict=True)]
        beside = [mean_power([a + s * b for a, b in zip(f, shift, strict=True)]) for s in (1, -1)]
        around.append(math.sqrt(beside[0] * beside[1]))
    return 10 * math.log10(mean_power(f) / median_low(around))


def test_waveforms_by_the_definition():
    x = torch.randn(2, 1, 101, dtype=torch.float64)
    found = checkerboard_nd(x, 3)
    assert found.keys() == {"32 periods", "worst"} and found["32 periods"].keys() == {(1 / 3,)}
    expected = level(list(x[:, 0]), (1 / 3,), (96,), (48,), (3, 12), False)
    assert found["worst"] == pytest.approx(expected, abs=1e-6)
    assert checkerboard_nd(torch.randn(1, 1, 520))["256 periods"].keys() == {(0.5,)}


def test_volumes_by_the_definition():
    x = torch.randn(1, 1, 16, 17, 8, dtype=torch.float64)[..., :8].repeat(1, 1, 1, 1, 2)
    x += 0.1 * torch.randn_like(x)
    found = checkerboard_nd(x, (2, 1, 1))
    assert found["global"].keys() == {(0.5, 0.0, 0.0)}
    expected = level([x[0, 0]], (0.5, 0.0, 0.0), (16, 16, 16), (8, 8, 8), (2, 3), True)
    assert found["windowed"][0.5, 0.0, 0.0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("size", "period"), [((17, 40), 2), ((33, 29), (1, 3)), ((48, 35), (4, 2))])
def test_pictures_measure_what_they_always_did(size, period):
    x = torch.rand(3, 2, *size).cumsum(-1)
    expected, found = checkerboard(x, period), checkerboard_nd(x, period)
    for form in ("global", "windowed"):
        assert found[form] == pytest.approx(expected[form], abs=1e-9)
    assert found["worst"] == pytest.approx(expected["worst"], abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_pattern_is_found_where_it_is_and_nowhere_else(n):
    size = {1: (4096,), 2: (48, 40), 3: (24, 32, 20)}[n]
    x = torch.randn(6, 2, *size)
    sign = torch.tensor([1.0, -1.0]).repeat(size[0] // 2).reshape(-1, *(1,) * (n - 1))
    before, after = checkerboard_nd(x), checkerboard_nd(x + sign)
    here = (0.5, *(0.0,) * (n - 1))
    for form in before.keys() - {"worst"}:
        for f in before[form]:
            if f == here:
                assert after[form][f] > before[form][f] + 10
            else:
                assert after[form][f] == pytest.approx(before[form][f], abs=2.0)
    scaled, parts = checkerboard_nd(100 * (x + sign)), checkerboard_nd(iter((x + sign).split(4)))
    for form in before.keys() - {"worst"}:
        assert scaled[form] == pytest.approx(after[form], abs=1e-3)
        assert parts[form] == pytest.approx(after[form], abs=1e-9)
    turned = checkerboard_nd((x + sign).movedim(2, -1))
    assert turned["worst"] == pytest.approx(after["worst"], abs=1e-9)
    assert checkerboard_nd(torch.zeros(1, 1, *size))["worst"] == 0.0


@pytest.mark.parametrize("n", [1, 3])
def test_uneven_phases_of_a_transposed_convolution_are_seen(n):
    x = torch.randn(8, 1, *{1: (600,), 3: (12, 12, 12)}[n]) + 1
    up = getattr(F, f"conv_transpose{n}d")
    line = torch.tensor([1.0, 3, 3, 1]) / 4  # linear interpolation: all phases answer a constant alike
    weight = line
    for _ in range(n - 1):
        weight = weight[..., None] * line
    uneven = weight.clone()
    uneven[(0,) * n] += 1.0  # a tap of one phase
    even, odd = (checkerboard_nd(up(x, w[None, None], stride=2, padding=1)) for w in (weight, uneven))
    for form in even.keys() - {"worst"}:
        for f in even[form]:
            assert odd[form][f] > even[form][f] + 6, (form, f)


@pytest.mark.parametrize(
    ("data", "period", "told"),
    [
        (torch.zeros(1, 1, 63), 2, r"takes \(64,\)"),
        (torch.zeros(1, 1, 16, 16, 15), 2, "too small"),
        (torch.zeros(1, 64), 2, "it takes tensors"),
        (torch.zeros(1, 1, 64), 1, "up-sampling factor"),
        (torch.zeros(1, 1, 64), (2, 2), "one for each of the 1 axes"),
        (torch.full((1, 1, 64), math.nan), 2, "NaN"),
        (torch.zeros(0, 1, 64), 2, "nothing to measure"),
        ([torch.zeros(1, 1, 64), torch.zeros(1, 1, 16, 16)], 2, "measure them apart"),
        ([torch.zeros(1, 1, 64), torch.zeros(1, 1, 640)], 2, "measure them apart"),
    ],
)
def test_what_cannot_be_measured_is_refused(data, period, told):
    with pytest.raises(pixelize.ArgumentError, match=told):
        checkerboard_nd(data, period)
