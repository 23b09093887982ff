"""The input gate: from iPixelDCL to PixelDCL by degrees, then hardened."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import pixelize
from pixelize import ArgumentError, PixelDCL2d, PixelizeError, iPixelDCL2d
from pixelize.layers.gate import GateSchedule, gate_of

LAYERS = [
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1, "schedule": "sequential"},
    {"kernel_size": 4, "stride": 2, "padding": 1, "schedule": "masked", "dependency_groups": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 3, "bias": False},
    {"kernel_size": 2, "stride": 3, "output_padding": 1, "dependency_kernel_size": 2},
    {"kernel_size": (5, 3), "stride": (2, 3), "padding": (3, 0), "dilation": (1, 2)},
    {"kernel_size": 2, "stride": 2, "padding": 1, "output_padding": 1},
]


def trained(arguments):
    layer = iPixelDCL2d(6, 6, dtype=torch.float64, **arguments)
    with torch.no_grad():
        for kernel in layer.dependency_kernels:
            kernel.mul_(0.3)
    return layer


def gradients(layer, x):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), x.grad, [k.grad for k in layer.dependency_kernels], layer.weight.grad, layer


@pytest.mark.parametrize("arguments", LAYERS, ids=str)
def test_a_gate_of_one_is_ipixeldcl_with_its_gradients(arguments):
    layer, x = trained(arguments), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    plain = gradients(layer, x)
    layer.input_gate = torch.tensor(1.0)  # computed with, not left out
    gated = gradients(layer, x)
    for a, b in zip([*plain[:2], *plain[2], plain[3]], [*gated[:2], *gated[2], gated[3]], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", LAYERS, ids=str)
def test_a_gate_of_zero_is_the_hardened_model_with_its_gradients(arguments):
    layer, x = trained(arguments), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    pixelize.set_input_gate(layer, 0.0)
    y, dx, kernels, weight, _ = gradients(layer, x)
    hard = pixelize.harden(layer)
    assert hard is layer and type(layer) is PixelDCL2d
    y2, dx2, kernels2, weight2, _ = gradients(layer, x)
    taps = layer.first_taps()
    seen = weight[:, :, taps[0]][:, :, :, taps[1]]
    for a, b in zip([y, dx, *kernels, seen], [y2, dx2, *kernels2, weight2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    weight[:, :, torch.tensor(taps[0])[:, None], taps[1]] = 0
    assert not weight.any()  # the others learned nothing


def test_outputs_are_affine_in_no_gate_but_continuous_and_between():
    layer, x = trained(LAYERS[0]), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    outputs = []
    for g in (0.0, 0.5, 0.5 + 1e-6, 1.0):
        pixelize.set_input_gate(layer, g)
        outputs.append(layer(x).detach())
    assert (outputs[1] - outputs[2]).abs().max() < 1e-4
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[3])
    # the layer is linear in its weight, and the gate scales a part of it
    torch.testing.assert_close(outputs[1], (outputs[0] + outputs[3]) / 2, rtol=0, atol=1e-12)


def network():
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 4, 2, 1))


def test_a_schedule_stays_at_one_falls_to_zero_and_stays_there():
    model = pixelize.convert(network())
    schedule = GateSchedule(model, 20, start=0.2, end=0.7)
    gates = [schedule.gate] + [schedule.step() for _ in range(22)]
    assert gates[:5] == [1.0] * 5 and gates[14:] == [0.0] * 9
    assert gates == sorted(gates, reverse=True) and len(set(gates)) == 11
    assert gate_of(model[0]) == gate_of(model[2]) == 0.0
    pixelize.harden(model)
    assert all(type(model[i]) is PixelDCL2d for i in (0, 2))


def test_a_schedule_resumes_where_it_was():
    first = pixelize.convert(network())
    schedule = GateSchedule(first, 10)
    for _ in range(4):
        schedule.step()
    second = pixelize.convert(network())
    resumed = GateSchedule(second, 10)
    resumed.load_state_dict(schedule.state_dict())
    assert gate_of(second[0]) == pytest.approx(gate_of(first[0])) and resumed.gate == schedule.gate
    assert resumed.step() == schedule.step()


def test_annealing_with_training_ends_in_a_pixeldcl_that_learned():
    torch.manual_seed(0)
    original = network()
    model = pixelize.convert(original)
    x = nn.functional.avg_pool2d(torch.randn(16, 3, 12, 12), 5, 1)
    wanted = original(x).detach()
    pixelize.set_input_gate(model, 0.0)
    cold = nn.functional.mse_loss(model(x), wanted).item()
    schedule = GateSchedule(model, 60)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    pixelize.harden(model)
    assert nn.functional.mse_loss(model(x), wanted).item() < 0.3 * cold


def test_a_gated_model_saves_and_loads_its_gate(tmp_path):
    model = pixelize.convert(network())
    pixelize.set_input_gate(model, 0.25)
    x = torch.randn(1, 3, 5, 5)
    pixelize.save(model, tmp_path / "gated")
    loaded = pixelize.load(tmp_path / "gated", into=network())
    assert gate_of(loaded[0]) == 0.25
    torch.testing.assert_close(loaded(x), model(x))


def test_what_makes_no_sense_is_refused_and_changes_nothing():
    model = pixelize.convert(network())
    for g in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="between 0"):
            pixelize.set_input_gate(model, g)
    for steps, start, end in ((0, 0.1, 0.6), (5, 0.6, 0.6), (5, -0.1, 0.5), (5, 0.5, 1.1)):
        with pytest.raises(ArgumentError, match="start"):
            GateSchedule(model, steps, start=start, end=end)
    with pytest.raises(PixelizeError, match="no iPixelDCL"):
        GateSchedule(network(), 5)
    pixelize.set_input_gate(model[0], 0.0)
    with pytest.raises(PixelizeError, match="anneal it to 0 first"):
        pixelize.harden(model)  # the other gate is open
    assert all(type(model[i]) is iPixelDCL2d for i in (0, 2))


def test_a_compiled_step_is_not_compiled_again_as_the_gate_moves():
    torch._dynamo.reset()
    count = torch._dynamo.testing.CompileCounter()
    layer, x = iPixelDCL2d(3, 4, 4, 2, 1), torch.randn(1, 3, 5, 5)
    pixelize.set_input_gate(layer, 0.9)
    compiled = torch.compile(layer, backend=count)
    for g in (0.9, 0.5, 0.1, 0.0):
        pixelize.set_input_gate(layer, g)
        torch.testing.assert_close(compiled(x), layer(x))
    assert count.frame_count == 1
