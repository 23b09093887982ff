"""Adapters: the registry, inputs from the model alone, running, saving and loading as the library does."""

from __future__ import annotations

import copy
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pixelize
from pixelize import adapters
from pixelize.running.outputs import relative_error


class Strange(nn.Module):
    """Inputs that nobody can guess."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, *, picture, mask):
        return self.conv(F.interpolate(picture * mask, scale_factor=2))


@pytest.mark.parametrize("norm, channels", [(nn.BatchNorm2d(4), 4), (nn.LayerNorm([3, 5, 5]), 3)])
def test_inputs_that_a_norm_refuses_do_not_run(norm, channels):
    for given in (3, 4):
        assert adapters.runs(norm, torch.randn(2, given, 5, 5)) == (given == channels)


def strange_inputs(model):
    return {"picture": torch.ones(1, 3, 4, 4), "mask": torch.ones(1, 1, 4, 4)}


def strange():
    """A model that only its own adapter knows, and that adapter: the registry keeps it after a test."""

    class Stranger(Strange):
        pass

    model = Stranger().eval()
    name = f"strange {id(Stranger)}"
    return model, adapters.Adapter(name, lambda model: isinstance(model, Stranger), strange_inputs)


def test_a_registered_adapter_is_found_first():
    model, adapter = strange()
    assert adapters.find(model).name == "generic"
    adapters.register(adapter)
    assert adapters.find(model) is adapter and adapters.adapters()[0] is adapter
    better = replace(adapter, detect=lambda model: False)
    adapters.register(better)
    assert [a.name for a in adapters.adapters()].count(adapter.name) == 1
    assert adapters.find(model).name == "generic"


def test_a_failed_registration_leaves_the_registry_as_it_was():
    before = adapters.adapters()
    with pytest.raises(TypeError, match="not an Adapter"):
        adapters.register("strange")
    assert adapters.adapters() == before


def test_other_packages_add_adapters_by_entry_points_and_a_broken_one_is_a_warning(tmp_path):
    """Two packages are installed: one with an adapter, one that cannot be imported."""
    (tmp_path / "strange.py").write_text(
        "from pixelize import adapters\n"
        "ADAPTER = adapters.Adapter('strange', lambda m: type(m).__name__ == 'Identity', lambda m: 1)\n"
    )
    for name, target in (("strange", "strange:ADAPTER"), ("broken", "nowhere:ADAPTER")):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[pixelize.adapters]\n{name} = {target}\n")
    script = (
        "import sys, torch\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pixelize import adapters\n"
        "print(adapters.find(torch.nn.Identity()).name)\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "strange"
    assert "adapter 'broken' (nowhere:ADAPTER) could not be loaded" in done.stderr


def test_convert_asks_the_adapter_for_inputs():
    model, adapter = strange()
    adapters.register(adapter)
    converted = pixelize.convert(model)
    assert [s.kind for s in pixelize.report(converted).converted] == ["resize_conv"]
    inputs = strange_inputs(model)
    torch.testing.assert_close(converted(**inputs), model(**inputs), rtol=1e-5, atol=1e-5)


def generic_models():
    yield nn.Sequential(nn.ConvTranspose2d(7, 4, 4, 1, 0), nn.ConvTranspose2d(4, 3, 4, 2, 1)), (2, 7, 1, 1)
    yield (
        nn.Sequential(nn.Linear(5, 64), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 3, 4, 2, 1)),
        (2, 5),
    )
    yield nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 4, 2, 1)), (2, 2, 64, 64)
    yield nn.Sequential(nn.ConvTranspose2d(6, 3, 4, 2, 1)), (2, 6, 8, 8)


@pytest.mark.parametrize("model, shape", generic_models())
def test_inputs_are_guessed_from_the_first_layer(model, shape):
    model = model.double().train()
    inputs = adapters.find(model).example_inputs(model)
    assert (tuple(inputs.shape), inputs.dtype) == (shape, torch.float64)
    assert model.training


def test_what_cannot_be_guessed_says_so():
    with pytest.raises(ValueError, match="pass example_inputs"):
        adapters.find(Strange()).example_inputs(Strange())


def test_guessing_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    adapters.find(model).example_inputs(model)
    assert [m.training for m in model] == [True, False, True]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def tiny_vae():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


def tiny_unet():
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet(
        "resnet18", encoder_weights=None, decoder_channels=(16, 16, 8, 8, 8), classes=3, in_channels=1
    ).eval()


def tiny_super_resolution():
    transformers = pytest.importorskip("transformers")
    config = transformers.Swin2SRConfig(
        image_size=16, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2
    )
    return transformers.Swin2SRForImageSuperResolution(config).eval()


def test_an_autoencoder_is_run_through_its_decoder_when_given_latents():
    vae = tiny_vae()
    adapter = adapters.find(vae)
    assert adapter.name == "diffusers"
    latents, picture = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert adapter.run(vae, latents).sample.shape == (1, 3, 16, 16)
        torch.testing.assert_close(adapter.run(vae, latents).sample, vae.decode(latents).sample)
        torch.testing.assert_close(adapter.run(vae, picture).sample, vae(picture).sample)


def test_inputs_of_libraries_fit_the_model():
    unet = tiny_unet()
    assert adapters.find(unet).name == "smp"
    assert adapters.find(unet).example_inputs(unet).shape == (1, 1, 64, 64)
    vae = tiny_vae().double()
    assert adapters.find(vae).example_inputs(vae)["sample"].dtype == torch.float64


@pytest.mark.parametrize("build", [tiny_unet, tiny_vae, tiny_super_resolution])
@pytest.mark.parametrize("layer", ["ipixeldcl", "dcl"])
def test_save_pretrained_gives_the_converted_model_back(build, layer, tmp_path):
    model = build()
    adapter = adapters.find(model)
    inputs = adapter.example_inputs(model)
    converted = pixelize.convert(model, layer, example_inputs=inputs)
    with torch.no_grad():
        for parameter in converted.parameters():  # as if trained
            parameter.add_(0.01 * torch.randn_like(parameter))
    converted.save_pretrained(tmp_path / "converted")
    loaded = type(model).from_pretrained(tmp_path / "converted")
    assert type(loaded) is type(model)
    assert relative_error(adapters.call(converted, inputs), adapters.call(loaded, inputs)) == 0
    assert pixelize.report(loaded).converted
    # a model that was not converted goes through the library's own methods
    model.save_pretrained(tmp_path / "plain")
    plain = type(model).from_pretrained(tmp_path / "plain").eval()
    assert not (tmp_path / "plain" / "pixelize.json").exists()
    assert relative_error(adapters.call(model, inputs), adapters.call(plain, inputs)) == 0


@pytest.mark.parametrize("build", [tiny_unet, tiny_vae, tiny_super_resolution])
def test_arguments_of_the_pretrained_methods_mean_what_they_do_elsewhere(build, tmp_path, monkeypatch):
    model = build()
    converted = pixelize.convert(model, "dcl", example_inputs=adapters.find(model).example_inputs(model))
    if not isinstance(model, smp_models()):  # smp's mixin knows neither
        converted.save_pretrained(tmp_path / "other", is_main_process=False)
        assert not (tmp_path / "other").exists()
        with pytest.raises(ValueError, match="variant"):
            converted.save_pretrained(tmp_path / "other", variant="fp16")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    pushed = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, name, **_: huggingface_hub.RepoUrl(f"me/{name}")
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **given: pushed.append(given))
    converted.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="name")
    assert [p["repo_id"] for p in pushed] == ["me/name"]
    assert (pushed[0]["folder_path"] / "pixelize" / "pixelize.json").exists()
    load = type(model).from_pretrained
    loaded, told = load(tmp_path / "saved", output_loading_info=True)
    assert type(loaded) is type(model) and not any(told.values())
    for where in ("meta", {"": "meta"}):
        assert {p.device.type for p in load(tmp_path / "saved", device_map=where).parameters()} == {"meta"}
    if not isinstance(model, smp_models()):
        with pytest.raises(ValueError, match="variant"):
            load(tmp_path / "saved", variant="fp16")


def smp_models() -> type:
    return pytest.importorskip("segmentation_models_pytorch").base.SegmentationModel


@pytest.mark.slow
def test_another_process_loads_what_save_pretrained_wrote(tmp_path):
    """As it is the library refuses the folder, rather than filling in random weights."""
    for build in (tiny_unet, tiny_vae, tiny_super_resolution):
        model = build()
        pixelize.convert(model).save_pretrained(tmp_path / type(model).__name__)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import pixelize\n"
        "from diffusers import AutoencoderKL\n"
        "from segmentation_models_pytorch import Unet\n"
        "from transformers import Swin2SRForImageSuperResolution\n"
        "for cls in (AutoencoderKL, Unet, Swin2SRForImageSuperResolution):\n"
        "    folder = Path(sys.argv[1]) / cls.__name__\n"
        "    try:\n"
        "        cls.from_pretrained(folder)\n"
        "    except Exception as error:\n"
        "        print('refused')\n"
        "    pixelize.connect_pretrained(cls)\n"
        "    print(len(pixelize.report(cls.from_pretrained(folder)).converted))\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    told = [line for line in out.splitlines() if line != "Loading weights from local directory"]  # smp's
    assert told == ["refused", "1", "refused", "5", "refused", "1"]


def test_the_third_party_example_runs(capsys):
    example = Path(__file__).parent.parent / "examples" / "third_party_adapter.py"
    runpy.run_path(str(example), run_name="__main__")
    out = capsys.readouterr().out
    assert "resize_conv" in out and "1 converted" in out
