"""A quick subset of benchmarks/coverage.py: third-party models converted exactly, and still able to do what
they could."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import pixelize
from pixelize import adapters
from pixelize.rewrites.seeing.other_size import resized_inputs
from pixelize.running.outputs import relative_error

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def _benchmark(name: str):
    """A file of ``benchmarks`` as a module; the folder is no package."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


coverage, coverage_nd = _benchmark("coverage"), _benchmark("coverage_nd")

# the library, how many sites of which kind, and whether another input size is possible
EXPECTED = {
    "smp/Unet mobilenet_v2": ("segmentation_models_pytorch", {"resize_conv": 5}, True),
    "diffusers/AutoencoderKL": ("diffusers", {"resize_conv": 2}, True),
    "diffusers/AutoencoderDC": ("diffusers", {"pixel_shuffle": 2}, True),
    "diffusers/AutoencoderKLHunyuanImage": ("diffusers", {"pixel_shuffle": 2}, True),
    "diffusers/UNet2DConditionModel": ("diffusers", {"resize_conv": 2}, True),
    "transformers/DPT depth": ("transformers", {"conv_transpose": 2}, False),
    "transformers/Eomt": ("transformers", {"conv_transpose": 2}, False),
    "transformers/Swin2SR": ("transformers", {"pixel_shuffle": 1}, True),
    "generator/DCGAN": ("torch", {"conv_transpose": 3}, False),
    "generator/pix2pix U-Net": ("torch", {"conv_transpose": 4}, True),
    "generator/CycleGAN resize": ("torch", {"resize_conv": 2}, True),
    "generator/FSRCNN x3": ("torch", {"conv_transpose": 1}, True),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_converted_model_computes_what_it_did(name):
    library, expected, resizable = EXPECTED[name]
    pytest.importorskip(library)
    model = coverage.built(coverage.catalogue()[name]).double()
    inputs = adapters.find(model).example_inputs(model)
    converted = pixelize.convert(model, example_inputs=inputs)
    report = pixelize.report(converted)
    counts = dict(coverage.Counter(s.kind for s in report.converted))
    assert counts == expected
    assert isinstance(converted, type(model)) and type(converted).__name__ == type(model).__name__
    wanted = [inputs, coverage.doubled(inputs)]
    if resizable:
        wanted += [
            next(i for i in (resized_inputs(inputs, r) for r in (1.5, 2.0)) if adapters.runs(model, i))
        ]
    for case in wanted:
        for training in (False, True) if case is inputs else (False,):
            before = coverage.output(model, case, training)
            assert relative_error(before, coverage.output(converted, case, training)) <= 1e-11


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["diffusers/AutoencoderTiny", "generator/pix2pix U-Net", "generator/CycleGAN resize"]
)
def test_a_converted_model_can_do_what_it_could(name):
    pytest.importorskip(
        {"smp": "segmentation_models_pytorch", "generator": "torch"}.get(
            name.split("/")[0], name.split("/")[0]
        )
    )
    found = coverage.abilities(coverage.catalogue()[name])
    assert found["backward"] == found["deepcopy"] == found["state dict"] == "yes"
    assert all(value in ("yes", "nor can the original") for value in found.values()), found


def test_a_modulated_generator_is_reported_and_left_alone():
    model = coverage.catalogue()["generator/StyleGAN2-like"]()
    report = pixelize.inspect(model, torch.randn(2, 16))
    assert not report.found
    assert [s.kind for s in report.skipped] == ["conv_transpose"]
    with pytest.raises(pixelize.NothingToConvertError):
        pixelize.convert(model, example_inputs=torch.randn(2, 16))


def test_the_table_shows_every_model_measured():
    found = {
        "models": {"generator/ESPCN x3": coverage.measure(coverage.catalogue()["generator/ESPCN x3"])},
        "abilities": {},
    }
    row = found["models"]["generator/ESPCN x3"]
    assert row["converted"] == {"pixel_shuffle": 1} and row["error_float64"] <= 1e-11 and row["error"] <= 1e-5
    assert "| generator/ESPCN x3 | record | 1 pixel_shuffle |" in coverage.table(found)


@pytest.mark.parametrize(
    "name",
    ["generator/functional", "generator/CycleGAN resize", "generator/ESPCN x3", "diffusers/AutoencoderDC"],
)
@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl", "dcl"])
def test_every_kind_of_site_is_saved_and_loaded(name, layer, tmp_path):
    if name.startswith("diffusers"):
        pytest.importorskip("diffusers")
    if (name, layer) == ("generator/functional", "dcl"):
        pytest.skip("plain transposed convolutions already")
    build = coverage.catalogue()[name]
    model = coverage.built(build)
    inputs = adapters.find(model).example_inputs(model)
    converted = pixelize.convert(model, layer, example_inputs=inputs)
    with torch.no_grad():
        for parameter in converted.parameters():  # as if trained
            parameter.add_(0.01 * torch.randn_like(parameter))
    pixelize.save(converted, tmp_path)
    torch.manual_seed(1)
    loaded = pixelize.load(tmp_path, into=build().eval())
    assert relative_error(coverage.output(converted, inputs), coverage.output(loaded, inputs)) == 0


# waveforms, films and volumes: the library, and how many sites of which kind
EXPECTED_ND = {
    "transformers/SpeechT5HifiGan": ("transformers", {"conv_transpose": 4}),
    "transformers/EnCodec": ("transformers", {"conv_transpose": 4}),
    "diffusers/AutoencoderOobleck": ("diffusers", {"conv_transpose": 3}),
    "diffusers/AutoencoderKLLTXVideo": ("diffusers", {"pixel_shuffle": 2}),
    "monai/UNet": ("monai", {"conv_transpose": 2}),
    "monai/BasicUNet pixelshuffle": ("monai", {"pixel_shuffle": 4}),
    "monai/AutoencoderKL": ("monai", {"resize_conv": 2}),
}


@pytest.mark.parametrize("name", EXPECTED_ND)
def test_models_of_waveforms_films_and_volumes_compute_what_they_did(name):
    library, expected = EXPECTED_ND[name]
    pytest.importorskip(library)
    build, *shapes = coverage_nd.catalogue()[name]
    model = coverage_nd.built(build)
    converted = pixelize.convert(model)  # seen with the inputs that its adapter makes
    assert dict(coverage.Counter(s.kind for s in pixelize.report(converted).converted)) == expected
    assert not pixelize.report(converted).skipped
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        assert coverage_nd.error_between(model, converted, x) < 1e-12
