"""The report: what is measured, drawn and told, and that its page needs nothing but itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from pixelize.conversion.convert import convert
from pixelize.errors import ArgumentError
from pixelize.files import write_bytes
from pixelize.measure.checkerboard import checkerboard
from pixelize.measure.phase_response import phase_response
from pixelize.measure.spectrum import power_spectrum
from pixelize.pages.figures import comparison_figure, marked, spectrum_image
from pixelize.pages.measuring import measure
from pixelize.pages.page import render, write_report
from pixelize.pages.shown_pictures import difference_caption, enlarged, shown_pictures

PNG = b"\x89PNG\r\n\x1a\n"


class Net(nn.Module):
    """Two up-samplers, registered in the opposite order of their calls; the last leaves a checkerboard.

    Fixed noise is added, that the pattern may be compared with something.
    """

    def __init__(self, pattern: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.ConvTranspose2d(4, 1, 2, 2)
        self.first = nn.ConvTranspose2d(3, 4, 4, 2, 1)
        noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
        self.register_buffer("noise", 0.01 * noise)
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        with torch.no_grad():
            self.last.weight.copy_(self.last.weight.mean((2, 3), keepdim=True) + 0.05 * pattern * sign)

    def forward(self, x):
        y = self.last(1 + self.first(x))
        return {"picture": y + self.noise[..., : y.shape[-2], : y.shape[-1]]}


def smooth(count: int, side: int) -> torch.Tensor:
    """Blurred noise ``(count, 3, side, side)``."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return nn.functional.avg_pool2d(noise, 5, 1, 2)


def assert_same_levels(a: dict, b: dict) -> None:
    for form in ("global", "windowed"):
        assert a[form] == pytest.approx(b[form])
    assert a["worst"] == pytest.approx(b["worst"])


def test_findings_are_the_measures_own():
    model, x = Net().eval(), smooth(10, 12)
    found = measure({"before": model}, [x[:8], x[8:]], title="t", told="i")
    with torch.no_grad():
        pictures = model(x)["picture"]
        inputs = {"first": x.mean((0, 2, 3)), "last": (1 + model.first(x)).mean((0, 2, 3))}
    torch.testing.assert_close(found.pictures["before"], pictures)
    assert found.period == 2
    assert_same_levels(found.variants[0].levels, checkerboard(pictures))
    makers = {n for source in found.diagnosis.sources for n in source.names}
    assert "last" in makers == {layer.site.name for layer in found.layers if layer.source}
    for layer in found.layers:
        expected = phase_response(getattr(model, layer.site.name), inputs[layer.site.name]).unevenness
        assert layer.unevenness["before"] == pytest.approx(expected, abs=1e-6)
    assert found.sentences()[0].startswith("A clear checkerboard")
    assert any("last makes it" in sentence for sentence in found.sentences())


def test_a_weaker_pattern_is_told_so():
    models = {"before": Net(pattern=0.1), "after": Net(pattern=0.01)}
    found = measure(models, [smooth(16, 16)], title="t", told="i")
    before, after = found.variants
    assert after.worst == pytest.approx(before.worst - 20, abs=1)  # a tenth of the amplitude
    assert after.error > 0 and 0 < after.psnr < 60
    assert f"after: {before.worst:.1f} dB became {after.worst:.1f} dB" in found.sentences()[-1]


def test_a_model_without_up_samplers():
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = measure({"m": nn.Conv2d(3, 1, 1)}, [noise], title="t", told="i")
    assert found.variants[0].worst < 3 and not found.diagnosis.sources and found.period == 2
    assert found.sentences()[0].startswith("No checkerboard")
    assert 'class="verdict good"' in render(found)


def test_the_page_stands_alone(tmp_path):
    model, x = Net(), smooth(8, 12)
    after = convert(model, example_inputs=x[:1])
    curves = {"loss": {"run": [(0, 1.0), (10, 0.5)]}}
    write_report((model, after), tmp_path / "deep" / "r.html", inputs=x, title="<b>&", training=curves)
    page = (tmp_path / "deep" / "r.html").read_text()
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page) and "@import" not in page
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert page.count('class="name"') == 2 and page.count('class="source"') >= 1
    for told in ("iPixelDCL2d", "unevenness, after", "no difference", ">loss<", "4 to 1", "2x2"):
        assert told in page
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["r-training.png", "r.html", "r.png"]
    for name in ("r.png", "r-training.png"):
        assert (tmp_path / "deep" / name).read_bytes().startswith(PNG)


def test_skipped_sites_are_listed_with_their_reason(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 4, 3, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1)
    )
    found = write_report(model, tmp_path / "r.html", inputs=smooth(8, 16), pngs=False)
    assert [s.name for s in found.report.skipped] == ["1"]
    assert found.report.skipped[0].reason in (tmp_path / "r.html").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_natural_pictures_are_set_beside():
    found = measure({"m": Net()}, [smooth(8, 12)], title="t", told="i", natural=[smooth(4, 48)])
    assert_same_levels(found.natural, checkerboard(smooth(4, 48)))
    assert "natural pictures, global" in render(found)


def test_resizes_and_shuffles_are_layers_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip
    x = smooth(8, 12)
    models = {"before": model, "after": convert(model, example_inputs=x[:1])}
    found = measure(models, [x], title="t", told="i")
    resize, shuffle = found.layers
    assert (resize.site.kind, shuffle.site.kind) == ("resize_conv", "pixel_shuffle") and shuffle.source
    assert resize.unevenness["before"] == -120 and resize.unevenness["after"] < -100
    assert shuffle.unevenness["before"] > -40
    assert shuffle.unevenness["after"] == pytest.approx(shuffle.unevenness["before"], abs=0.01)


def test_other_strides_and_sizes():
    model = nn.Sequential(nn.ConvTranspose2d(3, 2, (4, 3), (4, 3), bias=False))
    found = measure({"m": model}, [smooth(8, 11)[..., :9, :]], title="t", told="i")
    assert found.period == (4, 3) and found.pictures["m"].shape == (8, 2, 36, 33)
    assert "Channel " in render(found)
    small = measure({"m": model}, [smooth(8, 5)], title="t", told="i")
    assert small.period == 2 and "2 was measured" in small.notes[0]
    tiny = measure({"m": model}, [smooth(8, 3)], title="t", told="i")
    assert tiny.variants[0].levels is None and "too small" in tiny.notes[-1]
    assert "too small" in render(tiny)


def test_a_model_without_pictures():
    found = measure({"m": nn.Sequential(nn.Flatten(), nn.Linear(27, 2))}, [smooth(2, 3)], title="t", told="i")
    assert found.pictures == {} and "no pictures" in found.notes[0]
    assert "no pictures" in render(found)


def test_what_cannot_be_reported_leaves_nothing(tmp_path):
    class Nan(Net):
        def forward(self, x):
            return super().forward(x)["picture"] * float("nan")

    for models, inputs, told in [
        (Nan(), smooth(1, 8), "NaN"),
        (Net(), smooth(1, 8)[:, :2], "1x2x8x8"),
        ((Net(),), smooth(1, 8), "a pair"),
        ({"m": 3}, smooth(1, 8), "not a torch"),
        (Net(), [], "empty"),
    ]:
        with pytest.raises(ArgumentError, match=told):
            write_report(models, tmp_path / "r.html", inputs=inputs)
    assert list(tmp_path.iterdir()) == []


def test_reporting_leaves_the_model_as_it_was():
    model = Net().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    measure({"m": model}, [smooth(2, 12)], title="t", told="i")
    assert model.training and not model.last._forward_pre_hooks
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_files_are_written_whole_or_not_at_all(tmp_path, full_disk):
    write_bytes(tmp_path / "f", b"old")
    with full_disk(300), pytest.raises(OSError):
        write_bytes(tmp_path / "f", b"new" * 200)
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_bytes() == b"old"


def test_the_zoom_is_where_the_pattern_is():
    before = 0.05 * smooth(2, 96)
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    before[0, :, 60:80, 8:28] += ((-1.0) ** (x + y))[60:80, 8:28]
    after = before.clone()
    after[0] += 0.001
    found = shown_pictures({"b": before, "a": after, "same": before.clone()}, "b")
    top, left, size = found.boxes[0]
    assert size == 24 and 52 <= top <= 64 and 0 <= left <= 12
    assert found.pictures["b"].shape == (2, 96, 96, 3) and found.zooms["a"].shape == (2, 24, 24, 3)
    assert (found.differences["same"] == 128).all() and difference_caption(found, "same") == "no difference"
    assert found.gains["a"] >= 100 and (found.differences["a"][0] > 128).all()
    assert (found.differences["a"][1] == 128).all()


def test_enlarged_repeats_whole_pixels():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    big = enlarged(picture, 10)
    assert big.shape == (6, 12, 3) and (big[3:6, 9:12] == picture[1, 3]).all()
    assert enlarged(picture, 3).shape == picture.shape


def test_spectra_are_drawn_with_both_ends():
    assert marked(2) == sorted((v, h) for v in (-0.5, 0, 0.5) for h in (-0.5, 0, 0.5) if (v, h) != (0, 0))
    third = [(round(v, 3), round(h, 3)) for v, h in marked((1, 3))]
    assert third == [(0, -0.333), (0, 0.333)]
    y, _ = torch.meshgrid(torch.arange(16), torch.arange(17), indexing="ij")
    power, extent = spectrum_image(power_spectrum(0.1 * torch.randn(16, 17) + (-1.0) ** y))
    assert power.shape == (17, 17) and extent == pytest.approx((-0.5, 0.5, 8.5 / 16, -8.5 / 16))
    assert set(power.max(1).argsort()[-2:]) == {0, 16}  # the stripes, at -1/2 and +1/2


def test_figures_of_pictures_that_do_not_fit(tmp_path):
    a, b = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 17)
    for columns, reference, told in [
        ({"a": a, "b": b}, "a", "16, 17"),
        ({"a": a}, "b", "none of a"),
        ({"a": a / 0}, "a", "NaN"),
        ({"a": a[0]}, "a", "N, C, H, W"),
    ]:
        with pytest.raises(ArgumentError, match=told):
            comparison_figure(columns, reference, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []
    assert comparison_figure({"flat": 0 * a}, "flat", tmp_path / "c.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("n", [1, 3])
def test_a_model_of_waveforms_or_volumes_has_a_page_of_its_layers(n, tmp_path):
    model = getattr(nn, f"ConvTranspose{n}d")(2, 2, 4, 2, 1)
    findings = write_report(model, tmp_path / "page.html", inputs=torch.randn(2, 2, *(20,) * n))
    row = f'<td data-label="kernel">{"x".join("4" * n)}</td>'
    assert row in (tmp_path / "page.html").read_text()
    assert any("no pictures" in note for note in findings.notes)
