"""Each recipe runs with the data it brings, as a person would call it, and leaves what it promises."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from typer.testing import CliRunner

import pixelize
from pixelize.demo.generator import load_demo_model
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.recipes import gan, repair, segmentation, vae
from pixelize.recipes.artifact_loss import ArtifactLoss, natural_level, without_artifact
from pixelize.recipes.command import app
from pixelize.recipes.models.arms import SCRATCH_ARMS, share_weights, upsampler
from pixelize.recipes.models.dcgan import Generator
from pixelize.recipes.models.unet import UNet
from pixelize.recipes.recipe_settings import GanSettings, RepairSettings, SegmentationSettings, VaeSettings
from pixelize.recipes.training.checkpoint import load_checkpoint, save_checkpoint
from pixelize.recipes.training.processes import adam, descend, prepare, start
from pixelize.recipes.training.settings import names_of, read_yaml
from pixelize.sources.pictures import drawn

TINY = {
    "size": 16,
    "width": 4,
    "steps": 4,
    "batch": 4,
    "limit": 20,
    "eval_every": 2,
    "warmup": 1,
    "cpu": True,
}


@pytest.mark.parametrize("arm", SCRATCH_ARMS)
def test_every_arm_doubles_the_side(arm: str) -> None:
    assert upsampler(arm, 6, 4)(torch.randn(2, 6, 5, 7)).shape == (2, 4, 10, 14)


def test_arms_share_all_weights_but_the_up_samplers() -> None:
    reference, model = UNet(3, "dcl-k4", 4), UNet(3, "pixelshuffle-icnr", 4)
    share_weights(model, reference)
    theirs = reference.state_dict()
    differing = [n for n, t in model.state_dict().items() if n not in theirs or not torch.equal(t, theirs[n])]
    assert differing and all(n.startswith("up.") for n in differing)


def test_icnr_starts_as_a_nearest_resize() -> None:
    y = upsampler("pixelshuffle-icnr", 3, 2)(torch.randn(1, 3, 5, 5))
    torch.testing.assert_close(y, y[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_segmentation_trains_all_arms_with_all_seeds(tmp_path: Path) -> None:
    s = SegmentationSettings(**TINY, out=str(tmp_path), arms="dcl-k3,annealed", seeds="0,1", ema=0.5)
    data = segmentation.run(s)
    for arm in ("dcl-k3", "annealed"):
        assert data["arms"][arm]["seeds"] == [0, 1]
        for result in data["arms"][arm]["results"]:
            assert 0 <= result["mIoU"] <= 1 and 0 <= result["accuracy"] <= 1
        assert [r["step"] for r in data["arms"][arm]["histories"][0]] == [2, 4]
    assert {p.name for p in tmp_path.iterdir()} >= {"results.json", "table.md", "curves.png", "report.html"}
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["seeds"] == "0,1"
    assert "±" in (tmp_path / "table.md").read_text()
    assert list((tmp_path / "dcl-k3-seed0" / "tensorboard").iterdir())


def test_a_trained_model_is_converted_beside_its_control(tmp_path: Path) -> None:
    s = SegmentationSettings(
        **TINY, out=str(tmp_path), base_steps=2, arms="control,ipixeldcl,pixeldcl,annealed", freeze="down.*"
    )
    segmentation.run(s)
    fresh = UNet(6, "dcl-k4", 4)
    loaded = pixelize.load(tmp_path / "annealed-seed0" / "model", into=fresh)
    assert [type(m) for m in loaded.modules() if isinstance(m, nn.ConvTranspose2d)] == [
        pixelize.PixelDCL2d
    ] * 4
    assert not (tmp_path / "control-seed0" / "model").exists()


def test_smp_models_by_name(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    s = SegmentationSettings(
        **TINY,
        out=str(tmp_path),
        model="smp:Linknet?encoder_name=mobilenet_v2",
        loss="ce+dice",
        arms="ipixeldcl",
    )
    s = replace(s, size=32, steps=1, eval_every=1, limit=8)
    assert segmentation.run(s)["arms"]["ipixeldcl"]["results"][0]["mIoU"] <= 1
    assert (tmp_path / "ipixeldcl-seed0" / "model" / "pixelize.json").is_file()


def test_vae_from_scratch_and_converted(tmp_path: Path) -> None:
    s = VaeSettings(**TINY, out=str(tmp_path / "a"), arms="pixeldcl", samples=8)
    assert vae.run(s)["arms"]["pixeldcl"]["results"][0]["PSNR"] > 0
    assert (tmp_path / "a" / "samples-pixeldcl.png").is_file()
    s = replace(s, out=str(tmp_path / "b"), arms="control,pixeldcl", base_steps=2)
    assert set(vae.run(s)["arms"]) == {"control", "pixeldcl"}


def test_an_auto_encoder_of_diffusers_by_name(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    blocks = "('DownEncoderBlock2D','DownEncoderBlock2D')", "('UpDecoderBlock2D','UpDecoderBlock2D')"
    model = (
        f"diffusers:AutoencoderKL?down_block_types={blocks[0]}&up_block_types={blocks[1]}"
        "&block_out_channels=(8,8)&norm_num_groups=4&latent_channels=2&layers_per_block=1"
    )
    s = VaeSettings(**TINY, out=str(tmp_path), model=model, arms="control,ipixeldcl,annealed", samples=4)
    arms = vae.run(s)["arms"]
    assert all(arm["results"][0]["PSNR"] > 0 for arm in arms.values())
    assert arms["ipixeldcl"]["facts"]["parameters"] > arms["control"]["facts"]["parameters"]
    assert (tmp_path / "ipixeldcl-seed0" / "model" / "pixelize.json").is_file()
    with pytest.raises(ArgumentError, match="must be an auto-encoder"):
        vae.run(replace(s, model="diffusers:UNet2DModel?norm_num_groups=4&block_out_channels=(8,8,8,8)"))


def test_gan_from_scratch_and_from_a_trained_generator(tmp_path: Path) -> None:
    s = GanSettings(**TINY, out=str(tmp_path / "a"), arms="resize-conv", samples=8)
    assert "spectral distance dB" in gan.run(s)["arms"]["resize-conv"]["results"][0]
    save_file(Generator(16, 3, 64, "dcl-k4", 4).state_dict(), tmp_path / "g.safetensors")
    s = replace(s, out=str(tmp_path / "b"), arms="ipixeldcl", weights=str(tmp_path / "g.safetensors"))
    gan.run(s)
    assert (tmp_path / "b" / "ipixeldcl-seed0" / "model" / "pixelize.json").is_file()


@pytest.mark.slow
def test_repair_lowers_the_artifact_of_the_packages_generator(tmp_path: Path) -> None:
    s = RepairSettings(
        out=str(tmp_path),
        arms="control,ipixeldcl",
        steps=12,
        warmup=2,
        batch=8,
        eval_every=12,
        samples=32,
        cpu=True,
    )
    data = repair.run(s)["arms"]
    teacher, _, held = repair.load_teacher(s)
    fresh = torch.stack([held[i] for i in range(32)])
    before = pixelize.checkerboard(repair.pictures_of(teacher, fresh))["global"][0.5, 0.5]
    for arm in ("control", "ipixeldcl"):
        assert data[arm]["results"][0]["global (1/2,1/2)"] < before - 6
        assert data[arm]["results"][0]["low-passed PSNR"] > 20


def test_the_artifact_loss_is_the_measure() -> None:
    torch.manual_seed(0)
    pictures = torch.randn(6, 2, 32, 32) + 0.5 * torch.tensor([1.0, -1.0]).repeat(16)
    assert ArtifactLoss(natural_level(pictures))(pictures) < 1e-9
    pictures.requires_grad_()
    loss = ArtifactLoss(natural_level(None))(pictures)
    loss.backward()
    assert loss > 0.5
    lower = (pictures - 0.05 * pictures.grad / pictures.grad.abs().max()).detach()
    assert ArtifactLoss(natural_level(None))(lower) < loss


def test_what_is_kept_has_no_artifact_and_low_frequencies_stay() -> None:
    x = torch.arange(64.0)
    wave = torch.cos(2 * torch.pi * x / 32).expand(1, 1, 64, 64)
    pattern = (1 - 2 * (x % 2)).expand(1, 1, 64, 64)
    inner = (..., slice(8, -8), slice(8, -8))
    assert (without_artifact(wave + pattern) - wave)[inner].abs().max() < 0.02
    assert (without_artifact(wave + pattern, period=4) - wave)[inner].abs().max() < 0.05


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"arms": "dcl-k9"}, "no arm 'dcl-k9'"),
        ({"arms": "control"}, "no arm 'control'"),
        ({"batch": 5, "accumulate": 2}, "cannot be divided"),
        ({"steps": 0}, "--steps is 0"),
        ({"seeds": "a"}, "--seeds a"),
        ({"precision": "fp8"}, "--precision"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"freeze": "nothing.*"}, "no parameter is called so"),
        ({"data": "nowhere"}, "no such folder"),
        ({"model": "smp:Nothing", "arms": "control"}, "Nothing"),
        ({"width": 0}, "--width is 0; it must be at least 1"),
        ({"lr": -1.0}, "--lr is -1.0"),
        ({"ema": 1.0}, "--ema is 1.0"),
        ({"size": 20}, "does not take pictures of --size 20"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_before_training(
    tmp_path: Path, change: dict, match: str
) -> None:
    s = replace(SegmentationSettings(**TINY, out=str(tmp_path / "out"), arms="dcl-k2"), **change)
    with pytest.raises(ArgumentError, match=match):
        segmentation.run(s)
    assert not (tmp_path / "out").exists()


def test_room_for_all_runs_is_asked_for_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = SegmentationSettings(**TINY, out=str(tmp_path), arms="dcl-k2")
    weights = sum(t.nbytes for t in UNet(6, "dcl-k2", 4).state_dict().values())
    for_one = namedtuple("Usage", "free")(9 * weights + 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: for_one)
    with pytest.raises(PixelizeError, match=r"MiB free, and checkpoints need about \d+ MiB \(runs: 4\)"):
        segmentation.run(replace(s, seeds="0,1,2,3"))
    assert not list(tmp_path.rglob("*.safetensors"))
    segmentation.run(s)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inputs": "3x3"}, "--data 3x3: demo does not take them"),
        ({"inputs": "here"}, "neither a shape such as 100x1x1 nor a folder or zip"),
        ({"include": "nothing"}, "'nothing' matches no site"),
        ({"arms": "control-closed"}, "no arm 'control-closed'"),
        ({"arms": "control,dcl"}, "nothing to convert"),
        ({"samples": 0}, "--samples is 0"),
        ({"period": 1}, "--period is 1; it must be at least 2"),
    ],
)  # fmt: skip
def test_a_repair_that_means_nothing_is_refused_before_training(
    tmp_path: Path, change: dict, match: str
) -> None:
    s = RepairSettings(out=str(tmp_path / "out"), samples=8, cpu=True)
    with pytest.raises(PixelizeError, match=match):
        repair.run(replace(s, **change))
    assert not (tmp_path / "out").exists()


def test_what_is_repaired_first_is_repaired_once(tmp_path: Path) -> None:
    def weight(settings: RepairSettings, seed: int) -> torch.Tensor:
        """What a layer that makes one phase brighter is repaired to, on pictures of that seed."""
        line = torch.tensor([1.0, 3, 3, 1]) / 4
        up = nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3, bias=False)
        up.weight.data[:] = line * line[:, None]
        up.weight.data[..., 1::2, 1::2] *= 1.15
        pictures = torch.stack(list(drawn(8, 24, 3, seed)))
        return repair.repaired_once(settings, nn.Sequential(up), pictures.split(4), True)[0].weight.detach()

    s = RepairSettings(out=str(tmp_path))
    first = weight(s, 0)
    assert torch.equal(weight(s, 1), first)
    assert not torch.equal(weight(replace(s, fresh=True), 1), first)


def test_arms_start_from_what_was_repaired_before(tmp_path: Path) -> None:
    file = tmp_path / "repaired.safetensors"
    repair.repaired_once(RepairSettings(out=str(tmp_path)), nn.Identity(), [torch.rand(4, 3, 32, 32)], True)
    halved = load_demo_model().state_dict()
    halved["up4.weight"] = halved["up4.weight"] / 2
    save_checkpoint(file, halved, load_checkpoint(file)[1])
    s = RepairSettings(
        out=str(tmp_path),
        arms="control,control-repaired,ipixeldcl-repaired",
        samples=8,
        batch=2,
        lr=0.0,
        cpu=True,
    )
    s = replace(s, steps=1, eval_every=1)
    data = repair.run(s)
    plain, *halves = (arm["results"][0]["PSNR"] for arm in data["arms"].values())
    assert plain > 100 and halves[0] == pytest.approx(halves[1], abs=1e-3)
    assert halves[0] == pytest.approx(data["settings"]["repaired: PSNR"], abs=0.01) and halves[0] < 60


def test_a_repair_is_chosen_and_measured_on_different_pictures(tmp_path: Path) -> None:
    for i in range(19):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ArgumentError, match="of these 1 is held back, and two are needed"):
        repair.run(RepairSettings(inputs=str(tmp_path), size=8, out=str(tmp_path / "out"), cpu=True))


@pytest.fixture
def computed_in() -> Iterator[list[torch.dtype]]:
    """The types that up-samplers compute in while they are trained."""
    seen: list[torch.dtype] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.ConvTranspose2d) and module.training:
            seen.append(output.dtype)

    handle = register_module_forward_hook(look)
    yield seen
    handle.remove()


def test_mixed_precision_is_used_in_training_also_after_base_steps(
    tmp_path: Path, computed_in: list[torch.dtype]
) -> None:
    s = SegmentationSettings(
        **TINY, out=str(tmp_path), precision="bf16", base_steps=4, arms="control", ema=0.5, channels_last=True
    )
    data = segmentation.run(s)
    assert computed_in == [torch.bfloat16] * 4 * 8
    assert data["arms"]["control"]["results"][0]["mIoU"] >= 0
    computed_in.clear()
    segmentation.run(replace(s, out=str(tmp_path / "float32"), precision="no", base_steps=0, arms="dcl-k4"))
    assert set(computed_in) == {torch.float32}  # one process may run both
    with pytest.raises(ArgumentError, match="--precision fp16"):
        segmentation.run(replace(s, precision="fp16"))


@pytest.mark.slow
def test_compiled_training_computes_the_same(tmp_path: Path) -> None:
    s = GanSettings(**TINY, arms="ipixeldcl", samples=8)
    eager, compiled = (
        gan.run(replace(s, out=str(tmp_path / str(on)), compile=on))["arms"]["ipixeldcl"]["histories"][0]
        for on in (False, True)
    )
    for row, other in zip(eager, compiled, strict=True):
        row.pop("seconds"), other.pop("seconds")
        assert other == pytest.approx(row, rel=1e-2)


def test_micro_batches_make_one_step(tmp_path: Path) -> None:
    """Without batch norm's own statistics, the gradient of a batch is the mean of its micro-batches'."""
    s = replace(SegmentationSettings(**TINY, out="", arms="dcl-k2", freeze="down.*"), batch=4)
    weights = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = UNet(6, "dcl-k2", 4).double().eval()
        accelerator = start(replace(s, accumulate=accumulate))
        network = prepare(accelerator, s, model)
        optimizer = adam(accelerator, s, model, scratch=True)
        x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
        for part in x.chunk(accumulate):
            with accelerator.accumulate(network):
                descend(accelerator, s, network(part).square().mean(), network, optimizer)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-7)


def test_early_stopping(tmp_path: Path) -> None:
    s = SegmentationSettings(**TINY, out=str(tmp_path), arms="dcl-k2", patience=1)
    s = replace(s, steps=40, lr=0.0)  # batch norm alone moves
    history = segmentation.run(s)["arms"]["dcl-k2"]["histories"][0]
    assert history[-1]["step"] < 40


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    s = SegmentationSettings(**TINY, out=str(tmp_path), arms="dcl-k2", save_every=1)
    s = replace(s, steps=30, eval_every=30, lr=1e30, warmup=10)
    with pytest.raises(pixelize.PixelizeError, match=r"(loss|weights) is -?(nan|inf) by step"):
        segmentation.run(s)
    tensors, state = load_checkpoint(tmp_path / "dcl-k2-seed0" / "checkpoint.safetensors")
    assert 0 < state["step"] < 30 and all(t.isfinite().all() for n, t in tensors.items() if "num_" not in n)


def test_the_command_reads_a_file_and_options_win(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "size: 16\nwidth: 4\nsteps: 9\nbatch: 4\nlimit: 20\neval-every: 3\narms: [dcl-k2, dcl-k3]\n"
    )
    given = ["segmentation", "--config", str(config), "--steps", "3", "--cpu", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(data["arms"]) == ["dcl-k2", "dcl-k3"] and data["settings"]["steps"] == 3


def test_a_file_says_what_an_option_would(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("precision: no\ncpu: yes\nlr: 1e-3\nseeds: [0, 1]\ndata:\n")
    assert read_yaml(str(config), names_of(VaeSettings)) == {
        "precision": "no",
        "cpu": "yes",
        "lr": "1e-3",
        "seeds": "0,1",
    }
    config.write_text("data: {a: 1}\n")
    with pytest.raises(ArgumentError, match="data holds a mapping"):
        read_yaml(str(config), names_of(VaeSettings))


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("stepps: 9\n")
    wrong = CliRunner().invoke(app, ["vae", "--config", str(config)])
    assert wrong.exit_code == 2 and "stepps" in wrong.output
    refused = CliRunner().invoke(app, ["gan", "--data", str(tmp_path / "nowhere"), "--cpu"])
    assert refused.exit_code == 1 and "no such folder" in refused.output and "Traceback" not in refused.output
    for recipe in ("segmentation", "vae", "gan", "repair"):
        told = CliRunner().invoke(app, [recipe, "--help"])
        assert told.exit_code == 0 and "--arms" in told.output and "--device" in told.output
        assert "--cpu" not in told.output and "--model" not in told.output and "--inputs" not in told.output
    for spelling in (["demo", "--data", "3x3"], ["--model", "demo", "--inputs", "3x3"]):
        wrong = CliRunner().invoke(
            app, ["repair", *spelling, "--device", "cpu", "--out", str(tmp_path / "o")]
        )
        assert wrong.exit_code == 1 and "demo does not take them" in wrong.output
