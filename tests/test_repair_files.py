"""A repaired model back in the file it came from: what the unmodified library reads is the repaired model."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import pixelize
from pixelize.checkpoints.checkpoint import same_bits
from pixelize.checkpoints.formats import read_checkpoint
from pixelize.checkpoints.patch import patched
from pixelize.errors import ArgumentError, LoadError, PixelizeError
from pixelize.running.pictures import run
from pixelize.sources.inputs import drawn_inputs, padded
from pixelize.sources.opened import OpenedModel, open_model
from pixelize.sources.written import check_out, write_repaired

WINDOWS: dict[str, Any] = dict(
    img_size=16, embed_dim=12, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
)
SPANDREL: dict[str, tuple[str, dict[str, Any]]] = {
    "Compact": ("Compact", dict(num_feat=8, num_conv=2, upscale=2)),
    "ESRGAN": ("ESRGAN", dict(num_filters=8, num_blocks=1, scale=4)),
    "RealCUGAN": ("UpCunet2x", {}),
    "SPAN": ("SPAN", dict(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2)),
    "SwinIR": (
        "SwinIR",
        WINDOWS,
    ),
    "Swin2SR": (
        "Swin2SR",
        WINDOWS,
    ),
    "OmniSR": ("OmniSR", {}),
    "DITN": ("DITN", dict(dim=12, upscale=2)),
    "SAFMN": ("SAFMN", dict(dim=8, n_blocks=2, upscaling_factor=2)),
    "PLKSR": ("PLKSR", dict(dim=8, n_blocks=2, upscaling_factor=2)),
    "SwiftSRGAN": ("SwiftSRGAN", {}),
    "NAFNet": ("NAFNet", dict(width=8, enc_blk_nums=[1], middle_blk_num=1, dec_blk_nums=[1])),
    "SCUNet": ("SCUNet", dict(config=[1] * 7, dim=64)),
    "RCAN": ("RCAN", dict(n_resgroups=1, n_resblocks=1, n_feats=16, scale=2)),
    "SeemoRe": ("SeemoRe", {}),
    "MixDehazeNet": ("MixDehazeNet", {}),
}  # fmt: skip
WRAPPED = (
    "params_ema.pth",
    "params.pth",
    "module.pth",
    "plain.safetensors",
    "half.safetensors",
    "state_dict.ckpt",
)


def in_file(state: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    path = folder / kind
    if kind == "plain.safetensors":
        save_file({k: v.clone() for k, v in state.items()}, path, metadata={"by": "somebody"})
    elif kind == "half.safetensors":
        save_file({k: v.half() if v.is_floating_point() else v.clone() for k, v in state.items()}, path)
    elif kind == "module.pth":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif kind == "params_ema.pth":
        other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
        torch.save({"params": other, "params_ema": state, "iter": 5}, path)
    else:
        torch.save({path.stem: state}, path)
    return path


def altered(opened: OpenedModel) -> nn.Module:
    """The model with other numbers in its last two convolutions, as a repair might leave it."""
    model = copy.deepcopy(opened.model)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in convolutions[-2:]:
            layer.weight.add_(0.01 * torch.randn(layer.weight.shape, generator=g))
    return model


def picture(opened: OpenedModel) -> torch.Tensor:
    g = torch.Generator().manual_seed(4)
    x = torch.rand(opened.preparation.channels or 3, 32, 40, generator=g)
    return padded(x, opened.preparation)[None]


def check_file(opened: OpenedModel, path: Path, out: Path, tolerance: float = 1e-5) -> nn.Module:
    """Writes an altered model, checks all tensors of the file and the patch; returns the altered model."""
    model = altered(opened)
    written = write_repaired(opened, model, out, picture(opened), out.parent / "p.safetensors")
    assert 1 <= len(written.tensors) <= 2 and written.error <= tolerance
    before, after = read_checkpoint(path), read_checkpoint(out)
    assert list(before.tensors) == list(after.tensors)
    differ = [n for n in before.tensors if not same_bits(before.tensors[n], after.tensors[n])]
    assert sorted(differ) == sorted(written.tensors)
    assert all(before.tensors[n].dtype == after.tensors[n].dtype for n in differ)
    again = patched(out.parent / "p.safetensors", before)
    assert all(same_bits(again[n], after.tensors[n]) for n in differ) and len(again) == len(differ)
    return model


@pytest.mark.parametrize("number", range(len(SPANDREL)), ids=list(SPANDREL))
def test_spandrel_reads_what_is_written(number, tmp_path):
    spandrel = pytest.importorskip("spandrel")
    folder = list(SPANDREL)[number]
    name, options = SPANDREL[folder]
    torch.manual_seed(0)
    made = getattr(importlib.import_module(f"spandrel.architectures.{folder}"), name)(**options)
    kind = WRAPPED[number % len(WRAPPED)]
    state = made.state_dict()
    if folder == "ESRGAN":  # the keys of Real-ESRGAN, which spandrel renames when it reads them
        state = {real_esrgan(k): v for k, v in state.items()}
    path = in_file(state, kind, tmp_path)
    opened = open_model(str(path))
    x = picture(opened)
    out = tmp_path / f"out{path.suffix}"
    half = kind == "half.safetensors"
    model = check_file(opened, path, out, 0.1 if half else 1e-4)
    descriptor = spandrel.ModelLoader().load_from_file(out)
    with torch.no_grad():
        expected = run(model, x).clamp(0, 1)
        torch.testing.assert_close(descriptor(x), expected, atol=2e-2 if half else 1e-5, rtol=1e-3)


def real_esrgan(key: str) -> str:
    key = re.sub(r"model\.1\.sub\.0\.RDB(\d)\.conv(\d)\.0\.", r"body.0.rdb\1.conv\2.", key)
    names = {
        "model.0": "conv_first",
        "model.1.sub.1": "conv_body",
        "model.3": "conv_up1",
        "model.6": "conv_up2",
    }
    names |= {"model.8": "conv_hr", "model.10": "conv_last"}
    for old, new in names.items():
        key = re.sub(rf"^{re.escape(old)}\.", f"{new}.", key)
    return key


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        up = nn.ConvTranspose2d(8, 3, 4, 2, 1)
        self.up = nn.utils.parametrizations.weight_norm(up) if norm else up

    def forward(self, x):
        return self.up(self.body(x))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_nets.py").write_text(CODE)
    return "some_nets.py:Net"


@pytest.mark.parametrize("kind", WRAPPED)
def test_any_architecture_by_its_code(kind, nets, tmp_path):
    made = open_model(nets).model
    with torch.no_grad():
        made.up.weight.mul_(3)
    path = in_file(made.state_dict(), kind, tmp_path)
    opened = open_model(str(path), arch=nets)
    out = tmp_path / f"out{path.suffix}"
    model = check_file(opened, path, out, 0.1)
    again = open_model(nets, weights=str(out)).model
    x = torch.rand(1, 3, 16, 16)
    close = dict(atol=1e-2, rtol=1e-2) if "half" in kind else {}
    torch.testing.assert_close(again(x), model(x), **close)
    if "ema" in kind:  # the averaged weights, and not those beside them
        tree = torch.load(out, weights_only=True)
        assert torch.equal(tree["params_ema"]["up.weight"], model.up.weight) and tree["iter"] == 5


def test_of_a_shared_tensor_a_file_may_keep_one_name(nets, tmp_path):
    """As safetensors' own ``save_model`` does."""
    before, after = CODE.split("\n    def forward")
    tied = (
        "\n        self.tied = nn.ConvTranspose2d(8, 3, 4, 2, 1)\n        self.tied.weight = self.up.weight\n"
    )
    (tmp_path / "tied_nets.py").write_text(f"{before}{tied}\n    def forward{after}")
    made = open_model("tied_nets.py:Net").model
    with torch.no_grad():
        made.up.weight.mul_(3)
    save_model(made, str(tmp_path / "w.safetensors"))
    kept = load_file(tmp_path / "w.safetensors")
    assert len(kept) == len(made.state_dict()) - 1
    opened = open_model(str(tmp_path / "w.safetensors"), arch="tied_nets.py:Net")
    assert torch.equal(opened.model.up.weight, made.up.weight)
    assert opened.model.tied.weight is opened.model.up.weight
    check_file(opened, tmp_path / "w.safetensors", tmp_path / "out.safetensors")
    del kept["body.0.bias"]
    save_file(kept, tmp_path / "less.safetensors")
    with pytest.raises(LoadError, match=r"1 missing, such as body\.0\.bias"):
        open_model(str(tmp_path / "less.safetensors"), arch="tied_nets.py:Net")


def test_a_part_of_a_larger_model_is_found_by_its_keys(nets, tmp_path):
    made = open_model(nets).model
    state = {f"generator.{k}": v * 2 for k, v in made.state_dict().items()}
    torch.save({"state_dict": {**state, "discriminator.weight": torch.ones(3)}}, tmp_path / "gan.ckpt")
    opened = open_model(str(tmp_path / "gan.ckpt"), arch=nets)
    assert torch.equal(opened.model.up.weight, 2 * made.up.weight)
    check_file(opened, tmp_path / "gan.ckpt", tmp_path / "out.ckpt")


def test_a_model_from_no_file_is_written_as_its_state_dict(nets, tmp_path):
    opened = open_model(nets)
    for name in ("w.safetensors", "w.pth"):
        model = altered(opened)
        write_repaired(opened, model, tmp_path / name, picture(opened), tmp_path / "p.safetensors")
        again = open_model(nets, weights=str(tmp_path / name)).model
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_diffusers_reads_what_is_written(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options = dict(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=2)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options
    )
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text(
        '{"_class_name": "P", "vae": ["diffusers", "AutoencoderKL"]}'
    )
    opened = open_model(str(tmp_path / "pipeline"))  # the autoencoder of a pipeline
    assert type(opened.model).__name__ == "AutoencoderKL"
    latents, told = drawn_inputs(opened.model, opened.preparation, 3, 0)
    assert latents[0].shape[1] == 2 and "latents" in told
    model = altered(opened)
    out = tmp_path / "repaired"
    check_out(opened, out)
    written = write_repaired(opened, model, out, latents[0], tmp_path / "p.safetensors")
    again = diffusers.AutoencoderKL.from_pretrained(out)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    names = {p.name for p in (tmp_path / "pipeline" / "vae").iterdir()}
    assert {p.name for p in out.iterdir()} == names and len(written.tensors) == 2
    with pytest.raises(ArgumentError, match="name another one"):
        check_out(opened, tmp_path / "pipeline" / "vae")


@pytest.mark.parametrize(
    ("start", "kind"), [("", "safetensors"), ("first_stage_model.", "ckpt"), ("", "half.safetensors")]
)
def test_an_autoencoder_under_its_original_names(start, kind, tmp_path):
    """One file, as the code before diffusers wrote it, alone or in a pipeline's; diffusers reads what is
    written."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=2, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    for value in vae.parameters():  # as trained: no two are alike
        value.data.copy_(torch.randn(value.shape) / 9)
    if "half" in kind:
        vae.half().float()
    state = {start + original(k): _squared(k, v) for k, v in vae.state_dict().items()}
    path = tmp_path / f"vae.{kind}"
    if kind == "ckpt":
        torch.save({"state_dict": {**state, "model.diffusion_model.x": torch.ones(2)}, "epoch": 1}, path)
    else:
        save_file({k: v.half() if "half" in kind else v for k, v in state.items()}, path)
    diffusers.AutoencoderKL.from_config(vae.config).save_pretrained(tmp_path / "config")  # of other weights
    opened = open_model(str(path), arch=f"diffusers:{tmp_path / 'config'}")
    assert all(torch.equal(v, vae.state_dict()[k]) for k, v in opened.model.state_dict().items())
    out = tmp_path / f"out.{kind}"
    model = check_file(opened, path, out, 0.1 if "half" in kind else 1e-5)
    again = diffusers.AutoencoderKL.from_single_file(str(out), config=str(tmp_path / "config"))
    for name, value in again.state_dict().items():
        close = dict(atol=1e-2, rtol=1e-2) if "half" in kind else dict(atol=0, rtol=0)
        torch.testing.assert_close(value.float(), model.state_dict()[name], **close)
    torch.save({"decoder.up.0.x": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(LoadError, match="do not fit this AutoencoderKL"):
        open_model(str(tmp_path / "other.pth"), arch=f"diffusers:{tmp_path / 'config'}")


def original(key: str) -> str:
    """A parameter of diffusers' autoencoder of two levels by its first name."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = key.replace("down_blocks.0.downsamplers.0", "down.0.downsample")
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", key)
    key = key.replace("up_blocks.0.upsamplers.0", "up.1.upsample").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for new, old in {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }.items():
        key = key.replace(f"attn_1.{new}.", f"attn_1.{old}.")
    return key


def _squared(key: str, value: torch.Tensor) -> torch.Tensor:
    """The attention's linear layers were 1x1 convolutions."""
    return value[:, :, None, None].clone() if ".to_" in key and value.dim() == 2 else value


def test_transformers_reads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Swin2SRConfig(
        image_size=16,
        embed_dim=8,
        depths=[1],
        num_heads=[2],
        window_size=4,
        upscale=2,
        upsampler="pixelshuffle",
    )
    transformers.Swin2SRForImageSuperResolution(config).save_pretrained(tmp_path / "m")
    opened = open_model(f"transformers:{tmp_path / 'm'}")
    model = altered(opened)
    write_repaired(opened, model, tmp_path / "out", torch.rand(1, 3, 16, 16))
    again = transformers.Swin2SRForImageSuperResolution.from_pretrained(tmp_path / "out")
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    "name", ["torchvision:fcn_resnet50", "timm:resnet18", "smp:Linknet?encoder_name=resnet18"]
)
def test_named_models_filled_from_a_file(name, tmp_path):
    pytest.importorskip(
        {"smp": "segmentation_models_pytorch"}.get(name.partition(":")[0], name.partition(":")[0])
    )
    made = open_model(name)
    assert not made.trained and made.preparation.mean
    save_file({k: v.clone() for k, v in made.model.state_dict().items()}, tmp_path / "w.safetensors")
    opened = open_model(name, weights=str(tmp_path / "w.safetensors"))
    model = altered(opened)
    write_repaired(
        opened, model, tmp_path / "out.safetensors", padded(torch.rand(3, 64, 64), made.preparation)[None]
    )
    state = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def graph(folder: Path, opset: int, nodes: str, batch: Any = "n") -> Path:
    """A network that up-samples twice, exported by hand as several exporters would."""
    onnx = pytest.importorskip("onnx")
    h, g = onnx.helper, torch.Generator().manual_seed(0)
    tensors = {
        "w1": torch.randn(6, 3, 3, 3, generator=g) / 5, "b1": torch.zeros(6),
        "w2": torch.randn(6, 5, 4, 4, generator=g) / 6, "b2": torch.zeros(5),
        "w3": torch.randn(3, 5, 3, 3, generator=g) / 6,
        "scales": torch.tensor([1.0, 1, 2, 2]), "roi": torch.zeros(0),
    }  # fmt: skip
    protos = [onnx.numpy_helper.from_array(v.numpy(), k) for k, v in tensors.items()]
    made = [
        h.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
        h.make_node("Relu", ["a"], ["b"]),
        h.make_node("ConvTranspose", ["b", "w2", "b2"], ["c"], strides=[2, 2], pads=[1] * 4),
        h.make_node("Upsample", ["c", "scales"], ["d"], mode="nearest")
        if opset < 10
        else h.make_node("Resize", ["c", "roi", "scales"], ["d"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        h.make_node("Conv", ["d", "w3"], ["y"], pads=[1] * 4),
    ]  # fmt: skip
    if nodes == "constants":
        made = [h.make_node("Constant", [], [p.name], value=p) for p in protos] + made
        protos = []
    value = onnx.TensorProto.FLOAT
    ends = [h.make_tensor_value_info(n, value, [batch, 3, f"{n}h", f"{n}w"]) for n in ("x", "y")]
    model = h.make_model(
        h.make_graph(made, "g", ends[:1], ends[1:], protos), opset_imports=[h.make_opsetid("", opset)],
        producer_name="somebody",
    )  # fmt: skip
    model.ir_version = 6
    external = {"save_as_external_data": True, "location": "g.data", "size_threshold": 100}
    onnx.save(model, folder / "g.onnx", **(external if nodes == "external" else {}))
    return folder / "g.onnx"


@pytest.mark.parametrize(
    ("opset", "nodes", "batch"),
    [(9, "initializers", 1), (11, "constants", "n"), (13, "initializers", "n"), (13, "external", "n")],
)
def test_onnxruntime_runs_what_is_written(opset, nodes, batch, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    path = graph(tmp_path, opset, nodes, batch)
    opened = open_model(str(path))
    assert opened.preparation.single == (batch == 1)
    out = tmp_path / "out" / "g.onnx"
    model = check_file(opened, path, out)
    x = torch.rand(1, 3, 12, 20)
    found = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"]).run(
        None, {"x": x.numpy()}
    )[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-5, rtol=1e-4)
    before, after = (onnx.load(p, load_external_data=False) for p in (path, out))
    assert (before.opset_import, before.producer_name) == (after.opset_import, after.producer_name)
    assert before.graph.node[-1] == after.graph.node[-1] and before.ir_version == after.ir_version


def test_equal_initializers_are_told_apart(tmp_path):
    """Biases of zeros are all alike; what changes is found by the node that reads it."""
    pytest.importorskip("onnx2torch")
    opened = open_model(str(graph(tmp_path, 13, "initializers")))
    up = next(m for m in opened.model.modules() if isinstance(m, nn.ConvTranspose2d))
    model = copy.deepcopy(opened.model)
    next(m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)).bias.data.fill_(0.5)
    assert not up.bias.any()
    written = write_repaired(opened, model, tmp_path / "out.onnx", torch.rand(1, 3, 8, 8))
    assert written.tensors == ["b2"]


def test_a_weight_that_is_shared_cannot_become_two(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx2torch")
    h = onnx.helper
    w = onnx.numpy_helper.from_array(torch.randn(3, 3, 3, 3).numpy(), "w")
    nodes = [h.make_node("Conv", [a, "w"], [b], pads=[1] * 4) for a, b in (("x", "a"), ("a", "y"))]
    ends = [h.make_tensor_value_info(n, 1, ["n", 3, "h", "w"]) for n in ("x", "y")]
    onnx.save(h.make_model(h.make_graph(nodes, "g", ends[:1], ends[1:], [w])), tmp_path / "g.onnx")
    opened = open_model(str(tmp_path / "g.onnx"))
    weights = {p.data_ptr() for p in opened.model.parameters()}
    assert len(weights) == 1  # one parameter, as it is one initializer
    model = copy.deepcopy(opened.model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    layers[1].weight = nn.Parameter(layers[1].weight * 2)
    with pytest.raises(PixelizeError, match=r"shared|would not stay"):
        write_repaired(opened, model, tmp_path / "out.onnx", torch.rand(1, 3, 8, 8))
    assert not (tmp_path / "out.onnx").exists()


BAD = {
    "no such file": (lambda d: str(d / "none.pth"), {}, "no such file"),
    "unknown keys": (lambda d: _saved(d, {"a.b": torch.ones(2)}), {}, "spandrel knows no architecture"),
    "no tensors": (lambda d: _saved(d, {"epoch": 1}), {"arch": "some_nets.py:Net"}, "no state dict"),
    "another's": (
        lambda d: _saved(d, {"up.weight": torch.ones(2)}),
        {"arch": "some_nets.py:Net"},
        "do not fit",
    ),
    "sparse": (
        lambda d: _saved(d, {"up.weight": torch.eye(2).to_sparse()}),
        {"arch": "some_nets.py:Net"},
        r"up\.weight is sparse",
    ),
    "cut off": (lambda d: _bytes(d, _saved(d, {"a": torch.ones(99)}), 300), {}, "damaged or incomplete"),
    "empty": (lambda d: _bytes(d, _saved(d, {}), 0), {}, "an empty file"),
    "pointer": (lambda d: _told(d, "version https://git-lfs.github.com/spec/v1"), {}, "git lfs pull"),
    "web page": (lambda d: _told(d, "\n<!DOCTYPE html><html>"), {}, "a web page"),
    "arch of a name": (lambda d: "some_nets.py:Net", {"arch": "demo"}, "--arch belongs to"),
    "both": (lambda d: _saved(d, {}), {"arch": "demo", "weights": "x.pth"}, "--arch belongs to"),
}


def _told(folder: Path, text: str) -> str:
    (folder / "w.safetensors").write_text(text)
    return str(folder / "w.safetensors")


def _bytes(folder: Path, name: str, kept: int) -> str:
    Path(name).write_bytes(Path(name).read_bytes()[:kept])
    return name


def _saved(folder: Path, value: Any) -> str:
    torch.save(value, folder / "w.pth")
    return str(folder / "w.pth")


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_model_is_refused_in_a_sentence(case, nets, tmp_path):
    make, options, told = BAD[case]
    with pytest.raises((LoadError, ArgumentError), match=told) as refused:
        open_model(make(tmp_path), **options)
    assert "\n" not in str(refused.value)


def test_where_the_result_may_go(nets, tmp_path):
    torch.save(open_model(nets).model.state_dict(), tmp_path / "w.pth")
    opened = open_model(str(tmp_path / "w.pth"), arch=nets)
    for out, told in ((tmp_path / "o.safetensors", "end --out with .pth"), (tmp_path / "o", "end --out")):
        with pytest.raises(ArgumentError, match=told):
            check_out(opened, out)
    check_out(opened, tmp_path / "deep" / "o.pt")
    assert not (tmp_path / "deep").exists()


def test_a_converted_folder_is_built_from_a_file_again(tmp_path):
    pytest.importorskip("spandrel")
    name, options = SPANDREL["Compact"]
    module = importlib.import_module("spandrel.architectures.Compact")
    torch.save({"params": getattr(module, name)(**options).state_dict()}, tmp_path / "w.pth")
    opened = open_model(str(tmp_path / "w.pth"))
    x = picture(opened)
    converted = pixelize.convert(opened.model, example_inputs=x)
    pixelize.save(converted, tmp_path / "out")
    again = open_model(str(tmp_path / "out"), source=str(tmp_path / "w.pth"))
    assert torch.equal(again.model(x), converted(x)) and again.preparation == opened.preparation
