"""Errors of a layer's channels are counted as what they cost in the model's outputs."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import pixelize
from pixelize.sensitivity import DAMPING, sensitivity_root


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
    root = sensitivity_root(model, model[0], data(256, 8, 0))
    # each output is counted in units of its size; here both are one tensor
    wanted = (weight.T @ weight).double()
    wanted = (wanted / wanted.diagonal().mean() + DAMPING * torch.eye(4)) / (1 + DAMPING)
    torch.testing.assert_close(root @ root.T, wanted, atol=0.05, rtol=0)
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
    assert sensitivity_root(model, model.up, data(16, 8, 0)) is None


def test_what_works_in_place_and_unbatched_inputs_are_no_obstacle():
    model = nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    batch = data(16, 8, 0)[0]
    root = sensitivity_root(model, model[0], [batch])
    assert root.shape == (4, 4)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    assert sensitivity_root(model, model[0], list(batch)).shape == (4, 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_called_twice_is_looked_at_in_both_places():
    layer = nn.ConvTranspose2d(4, 4, 2, 2)
    with torch.no_grad():
        layer.weight.mul_(10)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = data(16, 4, 0)
    only_last = sensitivity_root(nn.Sequential(nn.Upsample(scale_factor=2), layer), layer, x)
    both = sensitivity_root(model, layer, x)
    torch.testing.assert_close(only_last @ only_last.T, torch.eye(4).double(), atol=0.1, rtol=0)
    assert (both @ both.T - torch.eye(4)).abs().max() > 0.1


def test_calibration_serves_the_channels_that_matter(monkeypatch):
    model = network(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    batches, x = data(128, 8, 2), torch.cat(data(64, 8, 3))
    missed = []
    for root in (sensitivity_root, lambda *_: None):
        monkeypatch.setattr(importlib.import_module("pixelize.calibrate"), "sensitivity_root", root)
        student = pixelize.convert(model, "pixeldcl")
        pixelize.calibrate(student, batches, joint_steps=400, progress=False)
        missed.append(float((student(x) - model(x)).detach().norm()))
    assert missed[0] < 0.7 * missed[1]
