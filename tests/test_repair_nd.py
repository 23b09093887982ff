"""Repair of what makes waveforms, volumes and films, and its parts along any number of axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_repair import QUICK, smooth
from torch import Tensor, nn
from torch.nn import functional as F

import pixelize
from pixelize.measure.any_axes import artifact_levels_nd
from pixelize.measure.checkerboard import GLOBAL
from pixelize.measure.content import content_change
from pixelize.measure.spectrum import mean_power, mean_power_nd
from pixelize.refit.judgement import Judge
from pixelize.refit.limits import RepairLimits
from pixelize.refit.powers import Windows, powers
from pixelize.refit.runner import look

LITTLE = RepairLimits(rounds=5, portion=12)
axes = pytest.mark.parametrize("n", [1, 3])
CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UP: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def drawn(count: int, n: int, seed: int) -> Tensor:
    """Inputs (count, 2, *size), each with a mean of its own."""
    size = {1: (300,), 2: (24, 24), 3: (8, 9, 10)}[n]
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, *size, generator=draw) + torch.randn(count, 2, *(1,) * n, generator=draw)


class Enlarged(nn.Module):
    """Features, an up-sampler with uneven phases, an activation, a last convolution."""

    def __init__(self, n: int, kind: str = "transposed") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n, self.kind = n, kind
        self.stem = CONV[n](2, 4, 3, padding=1)
        self.up = UP[n](4, 3, 3, 2, 1, 1) if kind == "transposed" else CONV[n](4, 3 * 2**n, 1)
        self.last = CONV[n](3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.relu(self.stem(x)))
        if self.kind == "shuffle":  # channels become places
            x = x.unflatten(1, (3, *(2,) * self.n))
            order = [v for axis in range(self.n) for v in (2 + self.n + axis, 2 + axis)]
            x = x.permute(0, 1, *order)
            for axis in range(self.n):
                x = x.flatten(2 + axis, 3 + axis)
        return self.last(torch.tanh(x))


def worst(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return pixelize.checkerboard_nd(model(x))["worst"]


@axes
@pytest.mark.parametrize("kind", ["transposed", "shuffle"])
def test_the_pattern_goes_and_the_output_stays(n: int, kind: str) -> None:
    model = Enlarged(n, kind).eval()
    data, fresh = drawn(32, n, 1), drawn(24, n, 2)
    before, kept = worst(model, fresh), {k: v.clone() for k, v in model.state_dict().items()}
    assert before > 10, "the test's own model has no pattern"
    repaired = pixelize.repair(model, data, progress=False, limits=LITTLE)
    report = pixelize.repair_report(repaired)
    assert worst(repaired, fresh) < max(4, before - 10), report
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    pool = getattr(F, f"avg_pool{n}d")
    with torch.no_grad():
        was, now = (pool(m(fresh), 2) for m in (model, repaired))  # over whole periods: without the pattern
    assert (now - was).square().mean() < 0.25 * was.var()
    assert report.content is not None and report.content.psnr > report.psnr
    named = {f for by in report.before.values() for f in by}
    assert ("(1/2)" if n == 1 else "(0,0,1/2)") in named
    assert set(report.before) <= ({"256 periods", "32 periods"} if n == 1 else {"global", "windowed"})


@axes
@pytest.mark.parametrize("layer", ["3x3", "ipixeldcl"])
def test_by_other_layers(n: int, layer: str) -> None:
    model, fresh = Enlarged(n).eval(), drawn(24, n, 2)
    repaired = pixelize.repair(model, drawn(24, n, 1), layer=layer, progress=False, limits=LITTLE)
    assert worst(repaired, fresh) < worst(model, fresh) - 10
    up: Any = repaired.up
    assert up.kernel_size == (6,) * n if layer == "3x3" else type(up).__name__ == f"iPixelDCL{n}d"


def test_without_data_waveforms_are_refused_and_volumes_are_not() -> None:
    for n in (1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(CONV[n](2, 4, 3, padding=1), UP[n](4, 2, 4, 2, 1)).eval()
        with torch.no_grad():
            model[1].weight.add_(0.2)
        repaired = pixelize.repair(model, example_inputs=drawn(1, n, 0), progress=False)
        report = pixelize.repair_report(repaired)
        if n == 1:
            assert not report.repaired and "needs data" in report.sites[0].reason
            assert torch.equal(repaired[1].weight, model[1].weight)
        else:
            taps = repaired[1].weight.unflatten(2, (2, 2)).unflatten(4, (2, 2)).unflatten(6, (2, 2))
            sums = taps.sum((2, 4, 6))  # of the taps of each phase
            assert len(report.repaired) == 1
            torch.testing.assert_close(sums, sums[..., :1, :1, :1].expand_as(sums))


@dataclass
class Said:
    waveform: Tensor
    length: int


class Speaker(nn.Module):
    """Samples (N, L) in a dataclass, as vocoders of transformers give them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Enlarged(1)

    def forward(self, mel: Tensor) -> Said:
        return Said(self.inner(mel.mT)[:, 0], 1)


class Film(nn.Module):
    """Frames (N, C, T, H, W), enlarged along height and width alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1))
        self.up = nn.ConvTranspose3d(6, 2, (1, 4, 4), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.stem(x)))


class Pictures(nn.Module):
    """A picture whose colours a convolution of one axis mixed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x.flatten(2), torch.eye(2)[..., None]).unflatten(2, x.shape[2:])


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (lambda: Enlarged(1), (1, 2, 40), 1),
        (lambda: Enlarged(2), (1, 2, 9, 9), 2),
        (lambda: Enlarged(3), (1, 2, 9, 9, 9), 3),
        (lambda: Enlarged(3, "shuffle"), (1, 2, 9, 9, 9), 3),
        (lambda: Enlarged(3), (1, 2, 7, 9, 9), 2),  # too few for volumes: pictures of frames
        (Film, (1, 3, 20, 9, 9), 2),
        (Speaker, (1, 40, 2), 1),
        (Pictures, (1, 2, 9, 9), 2),
    ],
)
def test_what_a_model_makes_is_seen(
    model: Callable[[], nn.Module], shape: tuple[int, ...], expected: int
) -> None:
    found = look(model().eval(), torch.randn(shape))
    assert found.axes == expected and found.picture is not None
    assert found.picture.dim() == expected + 2


@pytest.mark.parametrize("kind", [Speaker, Film])
def test_vocoders_and_films(kind: type[nn.Module]) -> None:
    model = kind().eval()
    data: Any
    if kind is Speaker:
        data, fresh = ([x.mT] for x in drawn(40, 1, 1).split(10)), [x.mT for x in drawn(24, 1, 2).split(8)]
    else:
        data, fresh = (smooth(4 * 32, 3, 16, s).unflatten(0, (32, 4)).transpose(1, 2) for s in (1, 2))
        fresh = [fresh]

    def level(m: nn.Module) -> float:
        with torch.no_grad():
            made = [m(x) for x in fresh]
        if kind is Speaker:
            return pixelize.checkerboard_nd([said.waveform[:, None] for said in made])["worst"]
        return pixelize.checkerboard([y.flatten(1, 2) for y in made])["worst"]

    before = level(model)
    repaired = pixelize.repair(model, data, progress=False, limits=QUICK)
    assert before > 8 and level(repaired) < max(4, before - 8), pixelize.repair_report(repaired)


@axes
def test_too_little_to_measure_is_said(n: int) -> None:
    x = torch.randn(4, 2, *(5,) * n)
    model = Enlarged(n).eval()
    report = pixelize.repair_report(pixelize.repair(model, x, progress=False))
    assert not report.repaired and "no up-sampling was seen" in report.notes[0]


@pytest.mark.parametrize(("n", "period"), [(1, 2), (1, 6), (3, 2), (3, 4)])
def test_powers_are_those_of_the_measure(n: int, period: int) -> None:
    size = {1: (256 * period + 3 * period,), 3: (8 * period,) * 3}[n]
    y = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    windows = Windows(size, period)
    levels = windows.levels([y])
    found = powers(y - y.mean(tuple(range(2, n + 2)), keepdim=True), windows, levels.power)
    assert {f for _, f in found} == set(windows.frequencies)
    for c, power in found.items():
        assert power.item() == pytest.approx(levels.power[c], rel=1e-6)
    public = pixelize.checkerboard_nd(y, period)
    name = windows.name(GLOBAL)
    for f in windows.frequencies:
        assert levels.excess[GLOBAL, f] == pytest.approx(public[name][f], abs=1e-9)
    assert artifact_levels_nd(y, period).excess.keys() == {
        (k, f) for k in public if k != "worst" for f in public[k]
    }


@pytest.mark.parametrize("n", [1, 2, 3])
def test_spectra_by_the_definition(n: int) -> None:
    size = (12, 8, 10)[:n]
    y = torch.randn(5, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = mean_power_nd([y[:2], y[2:]], size)
    where = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in size), indexing="ij")
    hann = torch.ones(size, dtype=torch.float64)
    for s, at in zip(size, where, strict=True):
        hann = hann * (0.5 - 0.5 * torch.cos(2 * math.pi * at / s))
    f = tuple(s // 3 for s in size)
    turn = sum(k * at / s for k, at, s in zip(f, where, size, strict=True))
    centred = (y - y.mean(tuple(range(2, n + 2)), keepdim=True)) * hann
    wave = torch.exp(-2j * math.pi * turn)
    expected = ((centred * wave).sum(tuple(range(2, n + 2))).abs() ** 2).mean() / (hann**2).sum()
    assert found[f].item() == pytest.approx(expected.item(), rel=1e-9)
    if n == 2:
        torch.testing.assert_close(found, mean_power(y), rtol=1e-12, atol=0)


@axes
def test_content_change_sees_what_is_no_artifact(n: int) -> None:
    size = {1: (1024,), 3: (24, 24, 24)}[n]
    y = torch.randn(6, 1, *size)
    sign = torch.tensor([1.0, -1.0]).repeat(size[-1] // 2)
    at, near = (content_change([y], [y + 0.1 * x], 1.0, size, 2) for x in (sign, torch.randn_like(y)))
    assert at.psnr > 60 and abs(at.spectrum) < 0.1
    assert near.psnr == pytest.approx(20, abs=1.5)


class Patches(nn.Module):
    """A linear map to the places of each token, folded by reshapes: what a transformer's head does.

    ``bias``: added to one place of every patch, so that the bias alone makes a pattern.
    """

    def __init__(self, n: int, row: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n, self.row = n, row
        self.stem, self.pixels = CONV[n](2, 6, 3, padding=1), nn.Linear(6, 2**n * 2)
        with torch.no_grad():
            self.pixels.bias[:2] += 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x)).movedim(1, -1)
        grid = x.shape[1:-1]
        if self.row:
            x = x.flatten(1, -2)
        x = self.pixels(x)
        if self.row:
            x = x.unflatten(1, grid)
        x = x.unflatten(-1, (*(2,) * self.n, 2))
        order = [v for axis in range(self.n) for v in (1 + axis, 1 + self.n + axis)]
        x = x.permute(0, 2 * self.n + 1, *order)
        for axis in range(self.n):
            x = x.flatten(2 + axis, 3 + axis)
        return x


@pytest.mark.parametrize(("n", "row"), [(1, True), (2, False), (2, True), (3, True)])
def test_a_linear_map_to_pixels_is_repaired_in_place(n: int, row: bool) -> None:
    model, fresh = Patches(n, row).eval(), drawn(24, n, 2)
    repaired = pixelize.repair(model, drawn(32, n, 1), progress=False, limits=QUICK)
    report = pixelize.repair_report(repaired)
    assert [site.name for site in report.repaired] == ["pixels"]
    before, after = worst(model, fresh), worst(repaired, fresh)
    assert before > 15 and after < before - 12, report
    kept, fitted = model.pixels, repaired.pixels
    assert type(fitted) is nn.Linear and fitted.weight.shape == kept.weight.shape
    assert not torch.equal(fitted.weight, kept.weight) and not torch.equal(fitted.bias, kept.bias)
    places = [bias.unflatten(0, (2**n, 2)).std(0) for bias in (kept.bias, fitted.bias)]
    assert (places[1] < places[0]).all(), "the bias is more nearly the same in every place"


def test_what_is_wanted_has_one_order() -> None:
    """Sums over it would differ from process to process otherwise: strings have other hashes in each."""
    y = torch.randn(8, 1, 64, 64) + torch.tensor([1.0, 0, 0, 0]).repeat(16)
    judge = Judge.of([y], Windows((64, 64), 4), RepairLimits())
    assert len(judge.wanted) > 2
    assert list(judge.wanted) == [c for c in judge.before.power if c in set(judge.wanted)]
    assert list(judge.ratios(judge.before)) == list(judge.wanted)
