"""The designs between PixelDCL and iPixelDCL, and the choice among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pixelize
from pixelize import ArgumentError, PixelDCL2d, iPixelDCL2d
from pixelize.calibration.choose import choose_designs
from pixelize.calibration.layer_fit import fit_layer
from pixelize.conversion.calibrate import calibrate
from pixelize.inheritance.cost import multiply_adds
from pixelize.inheritance.inherit import Design, inherit

GEOMETRIES = [
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 2, "stride": 3, "padding": 0, "output_padding": 2},
    {"kernel_size": (5, 4), "stride": (3, 2), "padding": (0, 2), "groups": 2, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
]


def stages_of(original, schedule):
    return len(
        PixelDCL2d(
            4, 6, original.kernel_size, original.stride, original.padding, schedule=schedule
        ).plan.stages
    )


@pytest.mark.parametrize("schedule", ["paired", "sequential"])
@pytest.mark.parametrize("arguments", GEOMETRIES, ids=str)
def test_with_every_stage_on_the_input_the_layer_is_the_transposed_convolution(arguments, schedule):
    original = nn.ConvTranspose2d(4, 6, dtype=torch.float64, **arguments)
    stages = stages_of(original, schedule)
    layer, error, _ = inherit(original, "pixeldcl", Design((3, 3), 1, schedule, stages), "inherit")
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert error < 1e-12
    assert isinstance(layer, PixelDCL2d)
    torch.testing.assert_close(layer(x), original(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), original(x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", GEOMETRIES, ids=str)
def test_with_no_stage_on_the_input_it_is_pixeldcl(arguments):
    layer = PixelDCL2d(4, 6, input_stages=0, **arguments)
    plain = PixelDCL2d(4, 6, **arguments)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(layer(x), plain(x))


def test_with_all_stages_and_dependencies_it_is_ipixeldcl():
    plain = iPixelDCL2d(4, 6, 4, 2, 1, dtype=torch.float64)
    layer = PixelDCL2d(4, 6, 4, 2, 1, input_stages=2, dtype=torch.float64)
    first = layer.first_taps()
    with torch.no_grad():
        layer.weight.copy_(plain.weight[:, :, first[0]][:, :, :, first[1]])
    layer.set_input_stages(2, plain.weight)
    layer.dependency_kernels, layer.bias = plain.dependency_kernels, plain.bias
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-12)


def test_gradients_reach_every_parameter():
    layer = PixelDCL2d(4, 6, 4, 2, 1, input_stages=1)
    layer(torch.randn(2, 4, 5, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("stages", [-1, 3])
def test_stages_that_the_schedule_does_not_have_are_refused(stages):
    with pytest.raises(ArgumentError, match="has 2 stages"):
        PixelDCL2d(4, 6, 4, 2, 1, input_stages=stages)


def test_a_partial_layer_is_recovered_from_its_inputs_and_outputs():
    teacher, student = (PixelDCL2d(3, 4, 4, 2, 1, input_stages=1) for _ in range(2))
    with torch.no_grad():
        for kernel in teacher.dependency_kernels:
            kernel.mul_(0.5)
    student.weight, student.bias, student.input_kernels = teacher.weight, teacher.bias, teacher.input_kernels
    pairs = [(x, teacher(x).detach()) for x in torch.randn(6, 20, 3, 6, 7)]
    assert fit_layer(student, lambda: pairs, first=False) < 1e-3


def network():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 3, 4, 2, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():  # bilinear: a layer that PixelDCL can be
        taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
        mix = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.3, 0.7]])
        model[4].weight.copy_(mix[:, :, None, None] * torch.outer(taps, taps))
    return model


def pictures(n, size=8):
    return nn.functional.avg_pool2d(torch.randn(n, 3, size + 4, size + 4), 5, 1)


def test_each_site_gets_the_cheapest_design_within_the_tolerance():
    model, data = network(), pictures(96).split(24)
    x = pictures(8)
    converted = pixelize.convert(model, "auto", data=data, tolerance=0.2, example_inputs=x)
    rows = pixelize.report(converted).converted
    assert rows[1].layer == "PixelDCL2d", rows[1].note
    for row in rows:
        assert row.error <= 0.2 or row.layer == "iPixelDCL2d"
        assert row.note.count("error") >= 1 and row.multiply_adds_after is not None
    strict = pixelize.convert(model, "auto", data=data, tolerance=0.0)
    assert {row.layer for row in pixelize.report(strict).converted} == {"iPixelDCL2d"}
    torch.testing.assert_close(strict(x), model(x), rtol=0, atol=1e-5)


def test_a_looser_tolerance_never_costs_more():
    model, data = network(), pictures(96).split(24)
    costs = []
    for tolerance in (0.0, 0.2, 1.0):
        converted = pixelize.convert(model, "auto", data=data, tolerance=tolerance, example_inputs=data[0])
        costs.append(pixelize.report(converted).multiply_adds_after)
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_what_auto_made_saves_loads_folds_calibrates_and_reverts(tmp_path):
    model, data = network(), pictures(96).split(24)
    x = pictures(4, 12)
    converted = pixelize.convert(model, "pixeldcl")
    choices = choose_designs(pixelize.convert(model, "ipixeldcl"), data, 0.0, progress=False)
    costs = [candidate.multiply_adds for candidate in choices["2"].tried]
    assert costs == sorted(costs) and len(costs) > 1
    assert choices["2"].taken.name == "iPixelDCL2d" and "depthwise" in str(choices["2"].tried[0])
    converted = pixelize.convert(model, "auto", data=data, tolerance=0.25)
    wanted = converted(x)
    pixelize.save(converted, tmp_path / "model")
    loaded = pixelize.load(tmp_path / "model", into=network())
    torch.testing.assert_close(loaded(x), wanted, rtol=0, atol=0)
    folded = pixelize.fold(converted)
    assert all(type(m) is nn.ConvTranspose2d for m in folded if isinstance(m, nn.ConvTranspose2d))
    torch.testing.assert_close(folded(x)[..., 28:-28, 28:-28], wanted[..., 28:-28, 28:-28], rtol=0, atol=1e-4)
    calibrate(converted, data, progress=False)
    torch.testing.assert_close(pixelize.revert(converted)(x), model(x), rtol=0, atol=1e-6)


def test_partial_layers_are_counted_as_they_are():
    layer = PixelDCL2d(8, 4, 4, 2, 1, dependency_kernel_size=2, input_stages=1)
    # two phases of 2x2 taps on 8 channels; one map and then two from two, 2x2 windows of 4 channels
    assert multiply_adds(layer, torch.zeros(1, 8, 10, 10)) == 100 * (2 * 4 * 8 * 4 + (1 + 4) * 4 * 4 * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "needs data"), ({"data": [torch.zeros(1, 3, 8, 8)], "init": "calibrate"}, "fits what it chooses")],
)
def test_auto_says_what_it_needs(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        pixelize.convert(network(), "auto", **arguments)
