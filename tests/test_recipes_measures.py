"""What recipes measure and compare: boundary IoU, differences paired by seed, arms of several designs."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")
pytest.importorskip("scipy")

import torch
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor, nn

import pixelize
from pixelize.errors import ArgumentError
from pixelize.recipes import segmentation
from pixelize.recipes.boundary_iou import BoundaryIoU
from pixelize.recipes.models.arms import (
    CONVERTED_ARMS,
    SCRATCH_ARMS,
    convert_arm,
    layer_and_width,
    split_arms,
    upsampler,
)
from pixelize.recipes.models.unet import UNet
from pixelize.recipes.recipe_settings import SegmentationSettings
from pixelize.recipes.training.processes import adam, start
from pixelize.recipes.training.results import ArmResult, difference, differences

VOID = 255


def slow_boundary(labels: Tensor, void: Tensor, c: int, d: int) -> set[tuple[int, int, int]]:
    """Pixels of class ``c`` with a pixel of another class (not void) within ``d``, by looking at each."""
    n, h, w = labels.shape
    found = set()
    for i in range(n):
        for y in range(h):
            for x in range(w):
                if void[i, y, x] or labels[i, y, x] != c:
                    continue
                around = [
                    (v, u)
                    for v in range(max(0, y - d), min(h, y + d + 1))
                    for u in range(max(0, x - d), min(w, x + d + 1))
                ]
                if any(labels[i, v, u] != c and not void[i, v, u] for v, u in around):
                    found.add((i, y, x))
    return found


@pytest.mark.parametrize(("h", "w", "share"), [(9, 14, 0.02), (13, 11, 0.15)])
def test_boundary_iou_is_that_of_the_slow_sets(h: int, w: int, share: float) -> None:
    g = torch.Generator().manual_seed(h)
    # blocks of 4x4 pixels, so that there is an inside; one class occurs nowhere
    blocks = torch.randint(0, 3, (2, 2, -(-h // 4), -(-w // 4)), generator=g)
    truth, guess = blocks.repeat_interleave(4, -1).repeat_interleave(4, -2)[..., :h, :w]
    truth = torch.where(torch.rand(truth.shape, generator=g) < 0.1, VOID, truth)
    void, d = truth == VOID, max(1, round(share * math.hypot(h, w)))
    each = []
    for c in range(3):
        a, b = slow_boundary(guess, void, c, d), slow_boundary(truth, void, c, d)
        each.append(len(a & b) / len(a | b))
    metric = BoundaryIoU(4, VOID, share)
    for one in (0, 1):  # added up over batches
        metric.update(guess[one : one + 1], truth[one : one + 1])
    assert float(metric.compute()) == pytest.approx(sum(each) / 3)


def test_boundary_iou_sees_outlines_and_not_insides() -> None:
    truth = torch.zeros(1, 64, 64, dtype=torch.long)
    truth[:, 16:48, 16:48] = 1
    exact, moved, far = BoundaryIoU(2), BoundaryIoU(2), BoundaryIoU(2)
    exact.update(truth, truth)
    moved.update(truth.roll(1, -1), truth)
    far.update(truth.roll(8, -1), truth)
    assert float(exact.compute()) == 1.0
    assert float(far.compute()) < float(moved.compute()) < 0.9


def test_void_makes_no_boundary() -> None:
    truth = torch.zeros(1, 32, 32, dtype=torch.long)
    truth[:, :, 20:] = VOID
    metric = BoundaryIoU(2)
    metric.update(torch.zeros_like(truth), truth)
    assert math.isnan(float(metric.compute()))


def test_intervals_of_differences_are_students() -> None:
    g = torch.Generator().manual_seed(0)
    for n in (2, 3, 7):
        a, b = torch.randn(2, n, dtype=torch.float64, generator=g).tolist()
        found = difference(dict(enumerate(a)), dict(enumerate(b)))
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert found.pairs == n
        assert found.mean - found.half == pytest.approx(low)
        assert found.mean + found.half == pytest.approx(high)


def test_differences_pair_the_seeds_that_both_have() -> None:
    one = ArmResult("one", [0, 1, 4], [{"m": 1.0}, {"m": 2.0}, {"m": 9.0}])
    two = ArmResult("two", [1, 0], [{"m": 2.5}, {"m": 1.5}])
    assert "| two | 2 | +0.5 (+0.5 to +0.5) |" in differences([one, two], ["m"])
    assert difference({3: 1.0}, {0: 2.0}).pairs == 0


def test_a_run_says_how_arms_differ(tmp_path: Path) -> None:
    s = SegmentationSettings(
        out=str(tmp_path), arms="dcl-k3,dcl-k3-w5,pixeldcl-masked", seeds="0,1", size=16, width=4, steps=2,
        batch=4, limit=12, eval_every=2, warmup=1, cpu=True,
    )  # fmt: skip
    arms = segmentation.run(s)["arms"]
    assert arms["dcl-k3-w5"]["facts"]["parameters"] > arms["dcl-k3"]["facts"]["parameters"]
    for arm in arms.values():
        for result in arm["results"]:
            assert 0 <= result["boundary IoU"] <= 1
            assert math.isfinite(result["logits (1/2,1/2) dB"])
    assert "minus `dcl-k3`" in (tmp_path / "table.md").read_text()


def test_a_width_is_for_models_from_scratch() -> None:
    assert layer_and_width("pixeldcl-dw-k4-w20", 16) == ("pixeldcl-dw-k4", 20)
    assert UNet(3, *layer_and_width("dcl-k3-w5", 4))(torch.randn(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    assert split_arms("dcl-k3-w5, annealed", (*SCRATCH_ARMS, "annealed")) == ["dcl-k3-w5", "annealed"]
    with pytest.raises(ArgumentError, match="no arm 'ipixeldcl-w5'"):
        split_arms("ipixeldcl-w5", CONVERTED_ARMS)
    with pytest.raises(ArgumentError, match="no arm"):
        upsampler("dcl-masked-k4", 2, 2)


def small() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1))


def test_an_adapter_trains_depthwise_dependency_kernels_alone() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 4, 5, 5)
    wanted = model(x).detach()
    made = convert_arm("adapter", model, x)
    torch.testing.assert_close(made(x), wanted)
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert trained and all("dependency_kernels" in name for name in trained)
    s = SegmentationSettings(cpu=True, lr=0.5)
    optimizer = adam(start(s), s, made)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]  # not the twentieth of it
    made(x).square().mean().backward()
    optimizer.step()
    assert (made(x) - wanted).abs().max() > 0.01
    after = made.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    layers = [m for m in made.modules() if isinstance(m, pixelize.iPixelDCL2d)]
    assert [m.dependency_groups for m in layers] == [6, 3]


def test_an_adapter_run_changes_nothing_but_what_its_small_file_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = UNet(6, "dcl-k4", 4)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    s = SegmentationSettings(
        out=str(tmp_path), weights=str(tmp_path / "base.safetensors"), arms="adapter", size=16, width=4,
        steps=3, batch=4, limit=12, eval_every=3, warmup=1, lr=0.1, cpu=True,
    )  # fmt: skip
    facts = segmentation.run(s)["arms"]["adapter"]["facts"]
    trained = pixelize.load(tmp_path / "adapter-seed0" / "model", into=UNet(6, "dcl-k4", 4)).eval()
    adapter = pixelize.adapter_state_dict(trained)
    assert facts["trained"] == sum(t.numel() for t in adapter.values()) < facts["parameters"]
    again = pixelize.load_adapter(convert_arm("adapter", copy.deepcopy(base).eval(), None), adapter)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again(x), trained(x), rtol=0, atol=0)
    assert (base.eval()(x) - again(x)).abs().max() > 1e-3
