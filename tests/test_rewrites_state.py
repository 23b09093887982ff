"""What a converted convolution keeps of the one before it: norms, weights of functions, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import pixelize
from pixelize.rewrites import outline, survey
from pixelize.running.outputs import relative_error


class UpBlock(nn.Module):
    """A resize and a skip, a shuffle, a functional resize-convolution and a transposed convolution."""

    def __init__(self, norm=lambda module: module, mode: str = "nearest") -> None:
        super().__init__()
        self.mode = mode
        self.conv = norm(nn.Conv2d(5, 4, 3, padding=1))
        self.shuffled = norm(nn.Conv2d(4, 16, 3, padding=1))
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4))
        self.up = nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = F.interpolate(x, scale_factor=2, mode=self.mode)
        x = F.pixel_shuffle(self.shuffled(self.conv(torch.cat([u, u.relu()[:, :2]], 1))), 2)
        x = F.conv2d(F.interpolate(x, scale_factor=2, mode=self.mode), self.kernel, self.shift, padding=1)
        return self.up(x)


def picture(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)).double()


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def error(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative_error(a(x), b(x))


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm, parametrizations.spectral_norm,
                                  parametrizations.weight_norm])  # fmt: skip
@pytest.mark.parametrize("layer", ["ipixeldcl", "dcl"])
def test_a_norm_is_worked_into_the_weight_and_that_is_said(norm, layer):
    model = UpBlock(norm).double().eval()
    before = model(picture())
    converted = pixelize.convert(model, layer, example_inputs=picture())
    assert error(model, converted, picture(1)) < 1e-12
    notes = {s.name: s.note for s in pixelize.report(converted).converted}
    assert "norm" in notes["conv"] and "norm" in notes["shuffled"]
    assert not any("weight_" in name or "original" in name for name, _ in converted.named_parameters())
    assert torch.equal(pixelize.revert(converted)(picture()), before)


def test_a_weight_that_something_unknown_computes_is_reported():
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1)).double()
    conv = model[1]
    conv.weight_raw = conv._parameters.pop("weight")
    conv.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.weight_raw * 0.5))
    report = pixelize.inspect(model, picture())
    assert [(s.name, s.status) for s in report.sites] == [("1", "skipped")]
    assert "not known" in report.sites[0].reason


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_convolution_called_as_a_function_after_a_resize_is_converted(mode, tmp_path):
    model = UpBlock(mode=mode).double()
    for inputs in (picture(), None):
        converted = pixelize.convert(model, example_inputs=inputs)
        assert "kernel_conv" in [s.name for s in pixelize.report(converted).converted]
        assert error(model, converted, picture(1)[..., 1:]) < 1e-12
    assert torch.equal(pixelize.revert(copy.deepcopy(converted))(picture()), model(picture()))
    pixelize.save(randomised(converted), tmp_path)
    loaded = pixelize.load(tmp_path, UpBlock(mode=mode).double())
    assert error(converted, loaded, picture()) == 0


def test_outlining_is_undone():
    model = UpBlock().double()
    state, before = list(model.state_dict()), model(picture())
    undo = outline(model, survey(model, picture(), functional=True).sites)
    assert isinstance(model.kernel_conv, nn.Conv2d) and torch.equal(model(picture()), before)
    undo()
    assert list(model.state_dict()) == state and type(model) is UpBlock
    assert not model._load_state_dict_pre_hooks


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_checkpoint_of_the_original_loads_into_the_converted_model(mode):
    model = UpBlock(mode=mode).double()
    other = randomised(copy.deepcopy(model))
    saved = other.state_dict()
    plain = pixelize.convert(model, "dcl", example_inputs=picture())
    plain.load_state_dict(saved)  # strictly: nothing is missing, nothing left over
    assert error(other, plain, picture(1)) < 1e-12
    layered = pixelize.convert(model, example_inputs=picture())
    found = layered.load_state_dict(saved, strict=False)
    assert not found.unexpected_keys and all("dependency_kernels" in key for key in found.missing_keys)
    assert error(other, layered, picture(1)) < 1e-12
    assert list(saved) == list(other.state_dict())  # the caller's own dictionary stays as it was
    layered.load_state_dict(layered.state_dict())
    assert error(other, layered, picture()) < 1e-12
