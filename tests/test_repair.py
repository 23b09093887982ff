"""Repair without training: the artifact goes, the pictures stay, and what is clean is not touched."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.conversion.convert import convert
from pixelize.errors import ArgumentError
from pixelize.layers.pixel_dcl import iPixelDCL2d
from pixelize.measure.checkerboard import checkerboard, window_sizes
from pixelize.measure.content import ContentChange, content_change
from pixelize.measure.spectrum import away, power_spectrum
from pixelize.refit.limits import RepairLimits
from pixelize.refit.repair import repair
from pixelize.refit.report import repair_report

QUICK = RepairLimits(rounds=8, portion=32)


def smooth(n: int, channels: int, size: int, seed: int) -> Tensor:
    """Pictures with falling spectra and a mean of their own."""
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.fft.rfft2(x)
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    return torch.fft.irfft2(spectrum / (0.05 + fy**2 + fx**2).sqrt() / 3, s=(size, size)) + 0.5


class Decoder(nn.Module):
    """Features, an up-sampler with uneven phases, tanh."""

    def __init__(self, kernel: int = 4, stride: int = 2, padding: int = 1, output_padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 3, kernel, stride, padding, output_padding)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(F.relu(self.stem(x))))


@dataclass
class Prediction:
    depth: Tensor
    hidden: Tensor


class DepthHead(nn.Module):
    """Two up-samplers in a row, a convolution after them, a dataclass out; depth has no channel axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.ConvTranspose2d(3, 8, 2, 2)
        self.second = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.head = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Prediction:
        hidden = F.relu(self.first(x))
        return Prediction(self.head(F.relu(self.second(hidden)))[:, 0], hidden)


class Identity(nn.Module):
    """Bilinear up-sampling written as a transposed convolution, on smooth pictures: nothing to repair."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3, bias=False)
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        self.up.weight.data = (row[:, None] * row).expand(3, 1, 4, 4).clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


def worst(model: nn.Module, x: Tensor, period: int = 2) -> float:
    with torch.no_grad():
        y = model(x)
    y = y.depth[:, None] if isinstance(y, Prediction) else y
    return checkerboard(y, period)["worst"]


@pytest.mark.parametrize(
    "geometry", [(4, 2, 1, 0), (3, 2, 1, 1), (2, 2, 0, 0), (5, 2, 2, 1), (6, 3, 2, 1)], ids=str
)
def test_the_artifact_goes_and_the_pictures_stay(geometry: tuple[int, int, int, int]) -> None:
    model = Decoder(*geometry)
    period = geometry[1]
    data, fresh = smooth(64, 3, 24, 1), smooth(64, 3, 24, 2)
    before = worst(model, fresh, period)
    kept = copy.deepcopy(model.state_dict())
    repaired = repair(model, data, progress=False, limits=QUICK)
    after = worst(repaired, fresh, period)
    assert after < 4 and before - after > 6
    assert type(repaired) is Decoder and type(repaired.up) is nn.ConvTranspose2d
    assert all(torch.equal(kept[k], v) for k, v in model.state_dict().items()), "the model given is as it was"
    report = repair_report(repaired)
    assert [site.name for site in report.repaired] == ["up"]
    assert report.psnr > 15


def test_the_spectrum_elsewhere_stays() -> None:
    model, data, fresh = Decoder(), smooth(64, 3, 24, 1), smooth(64, 3, 24, 2)
    repaired = repair(model, data, layer="3x3", progress=False, limits=QUICK)
    spectra = []
    for m in (model, repaired):
        with torch.no_grad():
            windows = m(fresh).unfold(2, 16, 8).unfold(3, 16, 8)
        spectra.append(power_spectrum(windows.flatten(0, 3)).power)
    low = (spectra[1] - spectra[0])[9:12, 9:12]  # 1/16 to 3/16 cycles per pixel
    assert low.abs().max() < 0.5


def test_identity_like_models_come_back_to_the_bit() -> None:
    model = Identity()
    repaired = repair(model, smooth(64, 3, 24, 3), progress=False, limits=QUICK)
    assert torch.equal(repaired.up.weight, model.up.weight)
    assert not repair_report(repaired).repaired


def test_dense_predictions_in_a_dataclass_get_no_worse() -> None:
    model, data, fresh = DepthHead(), smooth(64, 3, 16, 1), smooth(64, 3, 16, 2)
    before = worst(model, fresh)
    repaired = repair(model, data, progress=False, limits=QUICK)
    assert worst(repaired, fresh) < before - 3
    report = repair_report(repaired)
    for kind, levels in report.before.items():
        assert all(report.after[kind][f] <= max(level + 0.11, 2.0) for f, level in levels.items())


def test_a_repair_costs_no_more_than_the_pattern() -> None:
    """An uneven last layer whose phases carry the picture: that is no pattern."""
    torch.manual_seed(0)
    model, data = Decoder(3, 2, 1, 1), smooth(64, 3, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    small = F.avg_pool2d(data, 2)
    for _ in range(150):
        optimizer.zero_grad()
        (model(small) - torch.tanh(data)).square().mean().backward()
        optimizer.step()
    fresh = smooth(64, 3, 32, 2)
    repaired = repair(model, small, progress=False, limits=QUICK)
    with torch.no_grad():
        before, after = (
            F.mse_loss(m(F.avg_pool2d(fresh, 2)), torch.tanh(fresh)).item() for m in (model, repaired)
        )
    assert after < 1.5 * before


def test_training_mode_random_state_and_dtype_stay() -> None:
    model = Decoder().double().train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    repaired = repair(model, smooth(64, 3, 24, 1).double(), progress=False, limits=QUICK)
    assert torch.equal(torch.rand(1), expected)
    assert repaired.training and repaired.up.training and repaired.up.weight.dtype == torch.float64


def test_without_data_phases_answer_a_constant_alike() -> None:
    model = Decoder()
    model.up.weight.data += 0.5 * torch.rand(8, 3, 1, 1)
    repaired = repair(model, progress=False, limits=QUICK)
    site = repair_report(repaired).sites[0]
    assert site.status == "repaired"
    sums = F.conv_transpose2d(torch.ones(1, 8, 9, 9), repaired.up.weight, stride=2, padding=1)[
        ..., 4:12, 4:12
    ]
    assert (sums - sums[..., :1, :1]).abs().max() < 1e-5


def test_without_data_it_refuses_to_do_harm() -> None:
    model = Decoder(2, 2, 0)
    repaired = repair(model, progress=False, limits=QUICK)
    assert torch.equal(repaired.up.weight, model.up.weight)
    assert "would change its weights" in repair_report(repaired).sites[0].reason


def test_what_cannot_be_repaired_is_said() -> None:
    with pytest.raises(ArgumentError, match="layer="):
        repair(Decoder(), smooth(8, 3, 24, 1), layer="other", progress=False, limits=QUICK)
    with pytest.raises(ArgumentError, match="empty"):
        repair(Decoder(), [], progress=False, limits=QUICK)
    with pytest.raises(ArgumentError, match="does not run"):
        repair(Decoder(), smooth(1, 5, 24, 1), progress=False, limits=QUICK)
    plain = repair(nn.Sequential(nn.Conv2d(3, 3, 3)), smooth(8, 3, 24, 1), progress=False, limits=QUICK)
    assert "no up-sampling" in repair_report(plain).notes[0]
    flat = repair(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4)),
        smooth(8, 3, 24, 1),
        progress=False,
        limits=QUICK,
    )
    assert "no picture" in repair_report(flat).notes[0]
    with pytest.raises(ArgumentError, match="did not come"):
        repair_report(Decoder())


def test_it_reads_an_iterator_and_mappings_and_half_precision() -> None:
    model = DepthHead().bfloat16()
    batches = ({"x": x} for x in smooth(32, 3, 16, 1).bfloat16().split(8))
    repaired = repair(model, batches, progress=False, limits=QUICK)
    assert repaired.second.weight.dtype == torch.bfloat16 and model.second is not repaired.second
    assert repair_report(repaired).repaired


def test_a_repair_of_a_converted_model_and_by_converting() -> None:
    data, fresh = smooth(64, 3, 24, 1), smooth(64, 3, 24, 2)
    before = worst(Decoder(), fresh)
    for model, layer in ((convert(Decoder(), example_inputs=data[:1]), "dcl"), (Decoder(), "ipixeldcl")):
        repaired = repair(model, data, layer=layer, progress=False, limits=QUICK)
        assert isinstance(repaired.up, iPixelDCL2d) and worst(repaired, fresh) < before - 6


def test_window_sizes_are_whole_periods() -> None:
    assert window_sizes(65, 50, 4) == {"windowed": (32, 32), "global": (64, 48)}
    assert window_sizes(100, 100, 6)["windowed"] == (48, 48)


def test_content_change_sees_what_is_no_artifact():
    generator = torch.Generator().manual_seed(0)
    before = [torch.randn(8, 3, 33, 34, generator=generator) for _ in range(3)]
    rows, columns = torch.arange(33)[:, None], torch.arange(34)
    artifact = 0.2 * (-1.0) ** (rows + columns)
    found = content_change(before, [x + artifact for x in before], 2.0, (32, 34), 2)
    assert found.psnr > 80
    assert abs(found.spectrum) < 0.01
    noise = [0.2 * torch.randn(x.shape, generator=generator) for x in before]
    found = content_change(before, [x + n for x, n in zip(before, noise, strict=True)], 2.0, (32, 34), 2)
    share = away((32, 34), 2).double().mean().item()
    assert found.psnr == pytest.approx(20 - 10 * math.log10(share), abs=0.5)
    assert found.spectrum == pytest.approx(10 * math.log10(1.04), abs=0.5)
    assert content_change(before, before, 2.0, (32, 34), 2) == ContentChange(math.inf, 0.0)


def test_a_parametrized_model_is_repaired_and_left_as_it_was():
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm
    first, last = nn.ConvTranspose2d(6, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)
    model = nn.Sequential(norm(first), nn.ReLU(), norm(last)).eval()
    x = torch.randn(40, 6, 8, 8)
    before = model(x)
    repair(model, x, progress=False)(x)
    assert torch.equal(model(x), before)
