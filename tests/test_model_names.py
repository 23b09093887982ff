"""Names of models, checkpoints and inputs: what each means, and one clear sentence for what means nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from pixelize.conversion.convert import convert
from pixelize.conversion.report import report
from pixelize.conversion.saved import save
from pixelize.demo.generator import FaceGenerator
from pixelize.errors import ArgumentError, LoadError, PixelizeError
from pixelize.running.inputs import default_inputs
from pixelize.sources.inputs import parse_size, read_inputs
from pixelize.sources.models import build_model, has_weights, portable_source
from pixelize.sources.preparation import SIGNED, Preparation
from pixelize.sources.weights import load_weights

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4, kind="plain"):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.ConvTranspose2d(width, 3, 4, 2, 1))
        self.kind = kind

ready = Net()
number = 3
def breaks(): raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_nets.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("some_nets", None)


def test_a_callable_of_a_module_or_file_with_options(code):
    assert build_model("some_nets:Net?width=7&kind=odd")[0].out_channels == 7
    assert build_model("some_nets.py:Net?width=5")[0].out_channels == 5
    assert build_model("some_nets:Net?kind=1x1").kind == "1x1"
    assert not build_model("some_nets:ready").training


def test_which_names_stand_for_trained_models():
    trained = [
        "demo",
        "nets:make",
        "smp:Unet?encoder_weights=imagenet",
        "timm:x?pretrained=true",
        "diffusers:a/b",
    ]
    random = ["smp:Unet", "timm:x", "diffusers:AutoencoderKL", "smp:Unet?encoder_weights=None"]
    assert all(map(has_weights, trained)) and not any(map(has_weights, random))


def test_the_demo_model():
    assert isinstance(build_model("demo"), FaceGenerator)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dmo", "did you mean demo"),
        ("some_nets:Nett", "did you mean Net"),
        ("some_nets:number", "neither a model"),
        ("some_nets:breaks", "first line second line"),
        ("some_nets:Net?breadth=3", "breadth"),
        ("some_nets:Net?width", "key=value"),
        ("no_such_module:x", "no module 'no_such_module'"),
        ("missing.py:x", "no file missing.py"),
        ("json:dumps?obj=1", "not a torch.nn.Module"),
    ],
)
def test_names_that_mean_nothing(code, name, told):
    with pytest.raises(PixelizeError, match=told.replace("?", r"\?")) as caught:
        build_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("smp:Linknet", "segmentation_models_pytorch", "smp"),
        ("timm:resnet18", "timm", "timm"),
        ("monai:UNet", "monai", "monai"),
        ("diffusers:AutoencoderKL", "diffusers", "diffusers"),
        ("transformers:a/b", "transformers", "transformers"),
    ],
)
def test_a_missing_extra_names_its_pip_command(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PixelizeError, match=rf"pip install 'torch-pixelize\[{extra}\]'"):
        build_model(name)


def test_smp_without_encoder_weights():
    pytest.importorskip("segmentation_models_pytorch")
    assert type(build_model("smp:Linknet?encoder_name=resnet18")).__name__ == "Linknet"
    with pytest.raises(ArgumentError, match="did you mean Linknet"):
        build_model("smp:linknet")
    with pytest.raises(ArgumentError, match="did you mean resnet18"):
        build_model("smp:Linknet?encoder_name=resnet19")


def test_a_network_of_monai_in_three_dimensions(tmp_path):
    pytest.importorskip("monai")
    name = "monai:UNet?spatial_dims=3&in_channels=1&out_channels=2&channels=(4,8,16)&strides=(2,2)"
    made = convert(build_model(name))
    assert {row.layer for row in report(made).converted} == {"iPixelDCL3d"}
    save(made, tmp_path / "out", source=name)
    x = torch.randn(1, 1, 16, 8, 12)
    assert torch.equal(build_model(str(tmp_path / "out"))(x), made(x))
    assert not has_weights(name)
    with pytest.raises(ArgumentError, match=r"did you mean .*UNet"):
        build_model("monai:Unett")


def test_a_diffusers_folder_and_class(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    made = build_model(
        "diffusers:AutoencoderKL?block_out_channels=(8,)&norm_num_groups=4&down_block_types=('DownEncoderBlock2D',)"
        "&up_block_types=('UpDecoderBlock2D',)"
    )
    made.save_pretrained(tmp_path / "vae")
    again = build_model(f"diffusers:{tmp_path / 'vae'}")
    assert isinstance(again, diffusers.AutoencoderKL)
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(LoadError, match="did you mean diffusers:"):
        build_model(str(tmp_path / "vae"))


def test_a_saved_folder_is_built_from_what_it_notes(tmp_path):
    converted = convert(build_model("demo"))
    with torch.no_grad():
        converted.up4.weight += 0.1
    save(converted, tmp_path / "out", source="demo")
    latent = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(build_model(str(tmp_path / "out"))(latent), converted.eval()(latent))


def test_code_that_a_folder_names_is_run_only_when_repeated(code):
    save(convert(build_model("some_nets:Net")), "out", source="some_nets:Net")
    with pytest.raises(LoadError, match="if you trust that code"):
        build_model("out")
    assert isinstance(build_model("out", source="some_nets:Net"), nn.Sequential)
    with pytest.raises(ArgumentError, match="not a folder"):
        build_model("out", source="out")


def test_a_folder_that_notes_no_source(code):
    save(convert(build_model("some_nets:Net")), "out")
    with pytest.raises(LoadError, match="--source"):
        build_model("out")
    with pytest.raises(LoadError, match=r"pixelize\.json"):
        build_model(".")


def test_a_source_means_the_same_from_another_folder(code):
    assert portable_source("some_nets.py:Net?width=5") == f"{code / 'some_nets.py'}:Net?width=5"
    assert portable_source("smp:Linknet") == "smp:Linknet"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "netG_state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_checkpoints_are_found_in_what_holds_them(tmp_path, wrap, prefix):
    torch.manual_seed(0)
    wanted, model = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    torch.save(wrap({prefix + k: v for k, v in wanted.state_dict().items()}), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.weight, wanted.weight)


def test_checkpoints_that_do_not_fit_leave_the_model_alone(tmp_path):
    model = nn.Conv2d(2, 3, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(nn.Conv2d(2, 3, 5).state_dict(), tmp_path / "shape.pt")
    torch.save({"weight": torch.zeros(3, 2, 3, 3), "other": torch.zeros(1)}, tmp_path / "names.pt")
    torch.save(model, tmp_path / "pickle.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, told in [
        ("shape.pt", "5, 5"), ("names.pt", "1 missing, such as bias"), ("pickle.pt", "state dict alone"),
        ("empty.pt", "no state dict"), ("text.pt", "checkpoint"), ("text.safetensors", "readable"),
        ("no.pt", "no such file"),
    ]:  # fmt: skip
        with pytest.raises(LoadError, match=told):
            load_weights(model, tmp_path / name)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def picture(path, size, mode="RGB"):
    image = pytest.importorskip("PIL.Image")
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    array = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    image.fromarray(array.squeeze(-1) if channels == 1 else array, mode).save(path)
    return torch.from_numpy(array).permute(2, 0, 1)


def test_pictures_of_a_folder_in_batches_of_one_size(tmp_path):
    first = picture(tmp_path / "a.png", (20, 30))
    picture(tmp_path / "b.png", (20, 30), "RGBA")
    picture(tmp_path / "c.png", (16, 30), "L")
    (tmp_path / "note.txt").write_text("not a picture")
    found = read_inputs([str(tmp_path)])
    assert [tuple(x.shape) for x in found] == [(2, 3, 20, 30), (1, 3, 16, 30)]
    torch.testing.assert_close(found[0][0], first / 255)
    torch.testing.assert_close(
        read_inputs([str(tmp_path / "a.png")], preparation=Preparation(*SIGNED))[0][0], first / 127.5 - 1
    )
    assert read_inputs([str(tmp_path)], preparation=Preparation(channels=1), size=(8, 12))[0].shape == (
        3,
        1,
        8,
        12,
    )
    assert sum(len(x) for x in read_inputs([str(tmp_path)], count=2)) == 2


def test_arrays_and_shapes(tmp_path):
    array = np.arange(24, dtype=">f8").reshape(2, 12)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", sample=array, step=np.array([3]))
    (found,) = read_inputs([str(tmp_path / "x.npy")])
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), torch.from_numpy(array.astype("f8")))
    (named,) = read_inputs([str(tmp_path / "x.npz")])
    assert named["sample"].shape == (2, 12) and named["step"].dtype == torch.int64
    a, b = read_inputs(["1x3x8x9", "2x4,1X5"], seed=1)
    assert a.shape == (1, 3, 8, 9) and [tuple(t.shape) for t in b] == [(2, 4), (1, 5)]
    assert torch.equal(a, read_inputs(["1x3x8x9"], seed=1)[0])
    assert not torch.equal(a, read_inputs(["1x3x8x9"], seed=2)[0])


def test_inputs_that_mean_nothing(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    for name in ("text.png", "text.npy", "objects.npy", "empty", "none.png"):
        with pytest.raises(ArgumentError, match=name):
            read_inputs([str(tmp_path / name)])
    for shape in ("3x", "0x3", "999999x999999"):
        with pytest.raises(ArgumentError, match=shape):
            read_inputs([shape])
    assert parse_size("32x48") == (32, 48) and parse_size("32") == (32, 32)
    with pytest.raises(ArgumentError, match="0x3"):
        parse_size("0x3")


def test_default_inputs_suit_the_model():
    inputs, told = default_inputs(build_model("demo"), count=11, seed=3)
    assert sum(len(x) for x in inputs) == 11 and "seed 3" in told
    assert build_model("demo")(inputs[0]).shape[1:] == (1, 64, 64)

    class Strange(nn.Module):
        def forward(self, words):
            raise RuntimeError

    with pytest.raises(ArgumentError, match="--data with a shape"):
        default_inputs(Strange())
