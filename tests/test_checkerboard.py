"""The checkerboard measure against a slow oracle, predictions, photographs and a trained generator."""

from __future__ import annotations

import cmath
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelize.errors import ArgumentError, PixelizeError
from pixelize.measure.checkerboard import checkerboard, frequencies, frequency_name, minimum_size
from pixelize.measure.local_map import checkerboard_map
from pixelize.measure.spectrum import power_spectrum

HALVES = [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]


def texture(*shape: int, seed: int = 0) -> Tensor:
    """Random pictures whose spectrum falls as that of photographs does, roughly."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.cumsum(-1).cumsum(-2) / 10 + 0.3 * noise


def pattern(height: int, width: int, frequency: tuple[float, float]) -> Tensor:
    """A cosine wave of amplitude 1 at ``frequency``."""
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    return torch.cos(2 * torch.pi * (frequency[0] * y + frequency[1] * x))


def power_at(plane: np.ndarray, vertical: float, horizontal: float) -> float:
    """Hann-windowed power at one frequency, sample by sample."""
    height, width = plane.shape
    total, energy = 0j, 0.0
    for y in range(height):
        for x in range(width):
            weight = (0.5 - 0.5 * math.cos(2 * math.pi * y / height)) * (
                0.5 - 0.5 * math.cos(2 * math.pi * x / width)
            )
            total += weight * plane[y, x] * cmath.exp(-2j * math.pi * (vertical * y + horizontal * x))
            energy += weight**2
    return abs(total) ** 2 / energy


def oracle(images: Tensor, frequency: tuple[float, float], ring: tuple[int, int], axis_only: bool) -> float:
    """One figure of one form, by its definition; ``images`` (N, H, W) are what the window lies over."""
    height, width = images.shape[-2:]

    def mean_power(a: int, b: int) -> float:
        at = frequency[0] + a / height, frequency[1] + b / width
        return float(np.mean([power_at(image.numpy(), *at) for image in images]))

    around = []
    for a in range(-ring[1], ring[1] + 1):
        for b in range(-ring[1], ring[1] + 1):
            off_axis = axis_only and ((frequency[0] == 0 and a != 0) or (frequency[1] == 0 and b != 0))
            if ring[0] <= max(abs(a), abs(b)) and not off_axis:
                around.append(math.sqrt(mean_power(a, b) * mean_power(-a, -b)))
    return 10 * math.log10(mean_power(0, 0) / sorted(around)[(len(around) - 1) // 2])


@pytest.mark.parametrize(
    ("size", "period", "frequency"),
    [
        ((16, 22), 2, (0.5, 0.5)),
        ((17, 19), 2, (0.0, 0.5)),
        ((25, 29), 3, (1 / 3, 2 / 3)),
        ((26, 24), 3, (1 / 3, 0.0)),
    ],
)
def test_it_is_the_sum_of_its_definition_at_exact_frequencies(size, period, frequency):
    images = texture(2, *size)
    centred = images - images.mean((-2, -1), keepdim=True)
    measured = checkerboard(images, period)
    assert measured["global"][frequency] == pytest.approx(oracle(centred, frequency, (3, 4), False), abs=1e-4)
    side = 8 * period
    windows = [
        image[top : top + side, left : left + side]
        for image in centred
        for top in range(0, size[0] - side + 1, side // 2)
        for left in range(0, size[1] - side + 1, side // 2)
    ]
    expected = oracle(torch.stack(windows), frequency, (2, 3), axis_only=True)
    assert measured["windowed"][frequency] == pytest.approx(expected, abs=1e-4)


def test_several_windows_are_averaged():
    images = texture(2, 34, 25)
    centred = images - images.mean((-2, -1), keepdim=True)
    windows = [
        image[top : top + 16, left : left + 16] for image in centred for top in (0, 8, 16) for left in (0, 8)
    ]
    expected = oracle(torch.stack(windows), (0.5, 0.0), (2, 3), axis_only=True)
    assert checkerboard(images)["windowed"][0.5, 0.0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("size", "period"), [((64, 64), 2), ((37, 50), 2), ((41, 35), 3), ((48, 61), 4)])
def test_an_added_pattern_raises_the_figure_as_predicted(size, period):
    images = texture(3, 1, *size)
    before = checkerboard(images, period)["global"]
    for frequency in frequencies(period):
        wave = 0.3 * pattern(*size, frequency)
        # Both signs, so that what the pattern has in common with the pictures cancels in the mean.
        after = checkerboard(torch.cat([images + wave, images - wave]), period)["global"]
        coherent = size[0] * size[1] * (2 / 3) ** 2  # (sum of the Hann window)^2 / sum of its squares
        own = 2 * frequency[0] % 1 == 0 and 2 * frequency[1] % 1 == 0  # f and -f are the same
        added = 0.3**2 * coherent * (1 if own else 1 / 4)
        centred = images[:, 0] - images[:, 0].mean((-2, -1), keepdim=True)
        here = np.mean([power_at(image.numpy(), *frequency) for image in centred])
        rise = 10 * math.log10((here + added) / here)
        assert rise > 3
        assert after[frequency] - before[frequency] == pytest.approx(rise, abs=0.02)
        for other in set(before) - {frequency}:
            assert after[other] == pytest.approx(before[other], abs=0.1)


def test_white_noise_measures_zero():
    noise = torch.randn(4000, 32, 33, generator=torch.Generator().manual_seed(0))
    for period in (2, (3, 1)):
        measured = checkerboard(noise, period)
        for form in ("global", "windowed"):
            assert measured[form] == pytest.approx(dict.fromkeys(measured[form], 0), abs=0.35)


def test_a_pattern_that_changes_sign_is_seen_by_the_windowed_form_only():
    images = texture(40, 64, 64)
    sign = torch.ones(64, 64).double()
    sign[:32, :32] = sign[32:, 32:] = -1
    before = checkerboard(images)
    after = checkerboard(images + 0.1 * sign * pattern(64, 64, (0.5, 0.5)))
    assert after["global"][0.5, 0.5] - before["global"][0.5, 0.5] < 1
    assert after["windowed"][0.5, 0.5] - before["windowed"][0.5, 0.5] > 3


def test_frequencies_are_listed_once():
    assert frequencies(2) == HALVES
    assert list(checkerboard(torch.rand(16, 16))["windowed"]) == HALVES
    assert frequencies((1, 2)) == [(0.0, 0.5)]
    assert len(frequencies(3)) == 4
    quarters = frequencies(4)
    assert len(quarters) == 9
    assert set(HALVES) < set(quarters)
    for f in quarters:
        mirrored = (-f[0] % 1, -f[1] % 1)
        assert mirrored == f or mirrored not in quarters
    assert frequency_name((0.0, 0.5)) == "(0,1/2)"
    assert frequency_name((1 / 3, 2 / 3)) == "(1/3,2/3)"


def test_the_worst_is_the_highest_global_figure():
    measured = checkerboard(texture(2, 3, 20, 20) + pattern(20, 20, (0.5, 0.0)))
    assert measured["worst"] == measured["global"][0.5, 0.0] == max(measured["global"].values())


def test_containers_shapes_dtypes_and_scale_do_not_matter():
    pictures = (texture(6, 3, 24, 31) * 20 + 128).clamp(0, 255).to(torch.uint8)
    expected = checkerboard(pictures)

    def same(images, tolerance=1e-9):
        measured = checkerboard(images)
        for form in ("global", "windowed"):
            assert measured[form] == pytest.approx(expected[form], abs=tolerance)

    same(pictures.numpy())
    same(pictures.double() / 255, 1e-6)
    same(pictures.half())
    same(pictures.bfloat16())  # whole numbers to 256 are exact in it
    same(pictures.float().requires_grad_())
    same(pictures.numpy().astype(">i4"))
    same(pictures.to(memory_format=torch.channels_last))
    same([pictures[:1], pictures[1:]])
    same(picture for picture in pictures.numpy())
    same([plane for picture in pictures for plane in picture])
    same(pictures[:, :, None].flatten(0, 2))


def test_items_of_different_sizes_count_by_their_channels():
    one, two = texture(1, 1, 40, 40), texture(3, 1, 21, 33, seed=1)
    mixed = checkerboard([one, two])
    assert checkerboard([two, one])["global"] == pytest.approx(mixed["global"])
    low, high = sorted([checkerboard(one)["global"][0.5, 0.5], checkerboard(two)["global"][0.5, 0.5]])
    assert low - 5 < mixed["global"][0.5, 0.5] < high + 5


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (40, 23)])
@pytest.mark.parametrize("level", [0.0, 0.3, -7e4])
def test_pictures_without_detail_measure_zero(size, level):
    measured = checkerboard(torch.full((2, 3, *size), level))
    assert measured["global"] == pytest.approx(dict.fromkeys(HALVES, 0), abs=1e-3)
    assert measured["windowed"] == pytest.approx(dict.fromkeys(HALVES, 0), abs=1e-3)
    clean = checkerboard(torch.full((32, 32), 0.5) + 0.1 * pattern(32, 32, (0.5, 0.5)))
    assert 80 < clean["worst"] < 200  # nothing but the pattern: finite all the same


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.full((1, 16, 16), math.nan), "NaN or inf"),
        (torch.tensor([[1.0, math.inf]]).repeat(16, 8), "NaN or inf"),
        (torch.rand(3, 15, 40), "at least 16x16"),
        (np.zeros((64, 64, 3), np.uint8), "channels-last"),
        (torch.zeros(0, 3, 32, 32), "no images"),
        ([], "no images"),
        ("faces.zip", "pass a tensor"),
        ({"image": torch.rand(16, 16)}, "pass a tensor"),
        (7, "pass a tensor"),
        ([(torch.rand(2, 16, 16), 1)], "batch\\[0\\]"),
        (torch.rand(1, 1, 1, 16, 16), "shape"),
        (torch.rand(16), "shape"),
        (torch.rand(16, 16) * 1j, "real"),
        (np.full((16, 16), "a"), "real"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_advice(images, says):
    with pytest.raises(ArgumentError, match=says):
        checkerboard(images)


@pytest.mark.parametrize("period", [0, 1, -2, 2.0, "2", (2, 2, 2), (1, 1), True, None])
def test_a_bad_period_is_refused(period):
    with pytest.raises(ArgumentError, match="period"):
        checkerboard(torch.rand(32, 32), period)


def test_the_smallest_picture_is_eight_periods():
    for period in (2, 3, (1, 5)):
        smallest = minimum_size(period if isinstance(period, tuple) else (period, period))
        measured = checkerboard(texture(*smallest), period)
        assert all(math.isfinite(v) for form in ("global", "windowed") for v in measured[form].values())
        with pytest.raises(ArgumentError, match="too small"):
            checkerboard(texture(smallest[0], smallest[1] - 1), period)


@pytest.mark.parametrize("period", [2, 3, (1, 2)])
def test_the_map_shows_where_the_pattern_is_and_how_strong(period):
    frequency = frequencies(period)[-1]
    clean = texture(2, 3, 91, 100)
    marked = clean.clone()
    marked[1, :, 40:80, 10:60] += 2 * pattern(91, 100, frequency)[40:80, 10:60]
    own = 2 * frequency[0] % 1 == 0 and 2 * frequency[1] % 1 == 0
    mean_square_root = 2 if own else 2 / math.sqrt(2)
    before, after = checkerboard_map(clean, period), checkerboard_map(marked, period)
    assert after.shape == (2, 91, 100)
    assert torch.equal(before[0], after[0])
    assert after[1, 52:68, 22:48].mean() == pytest.approx(mean_square_root, rel=0.02)
    assert before[1].mean() < 0.2
    far = torch.ones(91, 100, dtype=torch.bool)
    far[28:92, 0:72] = False
    assert (after[1] - before[1])[far].abs().max() < 0.05


def test_the_map_reaches_the_borders():
    shown = checkerboard_map(0.5 + 0.1 * pattern(33, 50, (0.5, 0.5)))
    assert shown.shape == (33, 50)
    assert shown.numpy() == pytest.approx(0.1, rel=0.02)
    assert checkerboard_map(np.zeros((3, 16, 17), np.uint8)).abs().max() == 0


def test_the_spectrum_of_noise_is_flat_and_that_of_a_wave_is_a_peak():
    noise = 3 * torch.randn(300, 2, 20, 27, generator=torch.Generator().manual_seed(0))
    flat = power_spectrum([noise[:100], noise[100:]])
    assert flat.power.shape == (20, 27)
    assert flat.power.mean() == pytest.approx(20 * math.log10(3), abs=0.1)
    assert flat.radial_power[2:].numpy() == pytest.approx(20 * math.log10(3), abs=0.5)
    peak = power_spectrum(pattern(20, 27, (0.25, 0.0)))
    row, column = divmod(int(peak.power[10:].argmax()), 27)
    assert (float(peak.vertical[10 + row]), float(peak.horizontal[column])) == (0.25, 0.0)
    assert float(peak.radius[peak.radial_power.argmax()]) == 0.25
    assert torch.isfinite(power_spectrum(torch.zeros(8, 8)).power).all()
    with pytest.raises(ArgumentError, match="one size"):
        power_spectrum([torch.rand(8, 8), torch.rand(8, 9)])


def test_the_metric_is_the_measure_streamed_and_summed():
    pytest.importorskip("torchmetrics")
    from pixelize.measure.metric import CheckerboardMetric

    images = texture(7, 3, 33, 40)
    expected = checkerboard(images, (2, 3))
    one, two = CheckerboardMetric((2, 3)), CheckerboardMetric((2, 3))
    one.update(images[:2])
    one.update(images[2:3])
    two.update(images[3:].numpy())
    one.merge_state(two)
    computed = one.compute()
    for form in ("global", "windowed"):
        for f, value in expected[form].items():
            assert float(computed[f"{form} {frequency_name(f)}"]) == pytest.approx(value, abs=1e-4)
    assert float(computed["worst"]) == pytest.approx(expected["worst"], abs=1e-4)
    one.reset()
    with pytest.raises(ArgumentError, match="no images"):
        one.compute()
    assert set(one(images)) == set(computed)


def test_the_metric_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "pixelize.measure.metric", raising=False)
    with pytest.raises(PixelizeError, match=r"pip install 'torch-pixelize\[recipes\]'"):
        importlib.import_module("pixelize.measure.metric")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_figures():
    images = texture(4, 3, 50, 61)
    here, there = checkerboard(images, 3), checkerboard(images.cuda(), 3)
    for form in ("global", "windowed"):
        assert there[form] == pytest.approx(here[form], abs=1e-6)
    assert torch.allclose(checkerboard_map(images), checkerboard_map(images.cuda()), atol=1e-6)
    assert torch.allclose(power_spectrum(images).power, power_spectrum(images.cuda()).power, atol=1e-6)


def photographs() -> list[Tensor]:
    """The photographs that scikit-image carries in its wheel, in tiles of 64x64."""
    data = pytest.importorskip("skimage.data")
    tiles = []
    for name in (
        "astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "grass", "gravel",
        "immunohistochemistry", "moon", "page", "rocket", "text",
    ):  # fmt: skip
        picture = torch.from_numpy(np.atleast_3d(getattr(data, name)()).copy()).permute(2, 0, 1)
        tiles.append(picture.unfold(1, 64, 64).unfold(2, 64, 64).permute(1, 2, 0, 3, 4).flatten(0, 1))
    return tiles


def test_photographs_measure_near_zero():
    # Measured: 3.1, 0.6, 0.6 dB globally; -3.4, -3.1, -1.5 windowed.
    measured = checkerboard(photographs())
    for f in HALVES:
        assert -1 < measured["global"][f] < 4
        assert -5 < measured["windowed"][f] < 0
    assert abs(measured["global"][0.5, 0.5]) < 1.5
    # Measured for period 3: -0.5 to 3.4 dB globally, -0.6 to 0.4 windowed.
    thirds = checkerboard(photographs(), 3)
    assert all(abs(v) < 4.5 for v in thirds["global"].values())
    assert all(abs(v) < 1.5 for v in thirds["windowed"].values())


def test_a_pattern_added_to_photographs_shows_as_predicted():
    tiles = [tile.double() for tile in photographs()]
    before = checkerboard(tiles)["global"]
    amplitude = 1.0  # of 255 grey levels
    wave = amplitude * pattern(64, 64, (0.5, 0.5))
    after = checkerboard([t + s * wave for t in tiles for s in (1, -1)])["global"]
    spectra = [power_spectrum(t) for t in tiles]
    weights = [t.shape[0] * t.shape[1] for t in tiles]
    here = np.average([10 ** (float(s.power[0, 0]) / 10) for s in spectra], weights=weights)  # (-1/2, -1/2)
    rise = 10 * math.log10(1 + amplitude**2 * 64 * 64 * 4 / 9 / here)
    assert rise > 6
    assert after[0.5, 0.5] - before[0.5, 0.5] == pytest.approx(rise, abs=0.01)
    assert after[0.0, 0.5] == pytest.approx(before[0.0, 0.5], abs=0.01)


def test_the_trained_generator_measures_what_was_published_here():
    package = pytest.importorskip("gan_face_generate")
    from gan_face_generate.models import Generator

    generator = Generator(1, 3, 100, 64).eval()
    weights = torch.load(Path(package.__file__).parent / "weights.tar", map_location="cpu", weights_only=True)
    generator.load_state_dict(weights["netG_state_dict"])
    latents = torch.randn(256, 100, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        measured = checkerboard(generator(latents[start : start + 64]) for start in range(0, 256, 64))
    assert measured["worst"] == measured["global"][0.5, 0.5] == pytest.approx(13.8, abs=0.7)
    assert measured["global"][0.0, 0.5] == pytest.approx(4.9, abs=1)
    assert measured["global"][0.5, 0.0] == pytest.approx(4.7, abs=1)
    assert measured["windowed"] == pytest.approx(dict(zip(HALVES, (-3.4, -3.2, 5.0), strict=True)), abs=0.5)
