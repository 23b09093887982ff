"""Errors of a layer's channels are counted as what they cost in the model's outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pixelize
from pixelize import PixelizeWarning
from pixelize.calibration.joint_fit import fit_jointly
from pixelize.calibration.layer_fit import fit_layer, layer_error
from pixelize.calibration.sensitivity import DAMPING, sensitivities
from pixelize.inheritance.inherit import Design, inherit


def data(n, channels, seed):
    random = torch.Generator().manual_seed(seed)
    x = nn.functional.avg_pool2d(torch.randn(n, channels, 9, 8, generator=random), 3, 1)
    return torch.einsum("ij,njhw->nihw", torch.randn(channels, channels, generator=random), x).split(16)


def network(weight):
    """Up-samples 8 to 4 channels; what follows is linear: ``weight`` (outputs, 4) at each pixel."""
    torch.manual_seed(1)
    last = nn.Conv2d(4, len(weight), 1)
    with torch.no_grad():
        last.weight.copy_(weight[..., None, None])
    return nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), last)


def test_of_a_linear_model_it_is_the_square_of_what_follows():
    weight = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 2.0, 0.0, 0.1]])
    model = network(weight)
    found = sensitivities(model, [model[0]], data(256, 8, 0))
    # each output is counted in units of its size; here both are one tensor
    wanted = (weight.T @ weight).double()
    wanted = (wanted / wanted.diagonal().mean() + DAMPING * torch.eye(4)) / (1 + DAMPING)
    torch.testing.assert_close(found[model[0]], wanted, atol=0.05, rtol=0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Switched(nn.Module):
    """A model whose outputs do not tell how they depend on its layer."""

    def __init__(self, way):
        super().__init__()
        self.up, self.way = nn.ConvTranspose2d(8, 4, 4, 2, 1), way

    def forward(self, x):
        if self.way == "no gradients":
            with torch.no_grad():
                return self.up(x)
        y = self.up(x)
        return {"labels": y.argmax(1), "far from it": x.mean()} if self.way == "labels" else y * 0.0


@pytest.mark.parametrize("way", ["no gradients", "labels", "nothing left"])
def test_without_a_gradient_there_is_none(way):
    model = Switched(way)
    assert sensitivities(model, [model.up], data(16, 8, 0)) == {}


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("not made for training")


class NotForTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 4, 4, 2, 1)

    def forward(self, x):
        return OneWay.apply(self.up(x))


def test_where_gradients_fail_channels_count_alike_and_calibration_goes_on():
    model = NotForTraining()
    with pytest.warns(PixelizeWarning, match="NotForTraining could be computed .not made for training"):
        assert sensitivities(model, [model.up], data(16, 8, 0)) == {}
    assert not model.up._forward_hooks and all(p.requires_grad for p in model.parameters())
    student = pixelize.convert(model, "pixeldcl")
    with pytest.warns(PixelizeWarning, match="count alike"):
        pixelize.calibrate(student, data(64, 8, 0), joint_steps=2, progress=False)
    assert 0 < pixelize.report(student).converted[0].error < 1


def test_what_works_in_place_and_unbatched_inputs_are_no_obstacle():
    model = nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    batch = data(16, 8, 0)[0]
    state = torch.random.get_rng_state()
    assert sensitivities(model, [model[0]], [batch])[model[0]].shape == (4, 4)
    assert sensitivities(model, [model[0]], list(batch))[model[0]].shape == (4, 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_called_twice_is_looked_at_in_both_places():
    layer = nn.ConvTranspose2d(4, 4, 2, 2)
    with torch.no_grad():
        layer.weight.mul_(10)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = data(16, 4, 0)
    only_last = sensitivities(nn.Sequential(nn.Upsample(scale_factor=2), layer), [layer], x)[layer]
    both = sensitivities(model, [layer], x)[layer]
    torch.testing.assert_close(only_last, torch.eye(4).double(), atol=0.1, rtol=0)
    assert (both - torch.eye(4)).abs().max() > 0.1


def test_joint_training_serves_the_channel_that_matters():
    torch.manual_seed(0)
    plain = nn.ConvTranspose2d(8, 6, 4, 2, 1)
    pairs = [(x, plain(x).detach()) for x in data(128, 8, 2)]
    costs = torch.diag(torch.tensor([5.5, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64))
    missed = []
    for wanted in (costs, None):
        layer, _, _ = inherit(plain, "pixeldcl", Design(), "zero")
        fit_layer(layer, lambda: pairs)
        assert fit_jointly(layer, lambda: pairs, 300, wanted) == layer_error(layer, lambda: pairs)
        missed.append(sum((layer(x) - y).square().sum((0, 2, 3)) for x, y in pairs).detach())
    assert missed[0][0] < 0.8 * missed[1][0]
    assert missed[0][1:].sum() > 1.2 * missed[1][1:].sum()


def test_calibration_takes_what_follows_a_layer_into_account():
    inputs, missed = data(128, 8, 2), []
    for channel in (0, 1):  # of the same layer, the one that matters
        weight = torch.full((4,), 0.1)
        weight[channel] = 4.0
        model = network(weight.diag())
        student = pixelize.convert(model, "pixeldcl")
        pixelize.calibrate(student, inputs, joint_steps=200, progress=False)
        missed.append(sum((student[0](x) - model[0](x)).square().sum((0, 2, 3)) for x in inputs).detach())
    assert missed[0][0] < 0.8 * missed[1][0] and missed[1][1] < 0.8 * missed[0][1]
