"""Models of waveforms and of volumes: everything that converts pictures' up-samplers converts theirs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pixelize
from pixelize import ArgumentError
from pixelize.calibration.layer_fit import fit_layer
from pixelize.inheritance.inherit import Design, inherit
from pixelize.refit.limits import RepairLimits

LAYERS = {
    1: [(4, 4, 16, 8, 4), (4, 3, 3, 2, 1, 1)],
    3: [(4, 4, 2, 2), (4, 3, (3, 4, 3), (1, 2, 2), 1, (0, 0, 1))],
}
SIZES = {1: (11,), 3: (2, 4, 3)}
axes = pytest.mark.parametrize("n", [1, 3])
schedules = pytest.mark.parametrize("schedule", ["paired", "sequential", "near"])


def kind(name, n):
    return getattr(nn, f"{name}{n}d")


class Decoder(nn.Module):
    """Two up-samplers, one of them subclassed, the other with its weight normalised."""

    def __init__(self, n):
        super().__init__()
        base = kind("ConvTranspose", n)

        class Up(base):
            def doubled(self):
                return 2 * self.out_channels

        first, second = LAYERS[n]
        self.net = nn.Sequential(
            kind("Conv", n)(2, 4, 3, padding=1), kind("BatchNorm", n)(4), nn.ReLU(), Up(*first),
            torch.nn.utils.parametrizations.weight_norm(base(*second)),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


def decoder(n, seed=0):
    torch.manual_seed(seed)
    return Decoder(n).double().eval()


def inputs(n, samples=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 2, *SIZES[n], dtype=torch.float64, generator=generator)


def trained(model):
    """The model with dependency kernels that are not zero."""
    for name, p in model.named_parameters():
        if "dependency_kernels" in name:
            nn.init.normal_(p, std=0.2)
    return model


@axes
@schedules
def test_conversion_is_exact_and_is_undone(n, schedule):
    model, x = decoder(n), inputs(n)
    found = pixelize.inspect(model, x)
    assert [site.name for site in found.found] == ["net.3", "net.4"] and not found.skipped
    converted = pixelize.convert(model, schedule=schedule, example_inputs=x)
    assert sum(isinstance(m, kind("ConvTranspose", n)) for m in converted.modules()) == 2
    assert pixelize.report(converted).error == 0.0 and converted.net[3].doubled() == 8
    assert {row.layer for row in pixelize.report(converted).converted} == {f"iPixelDCL{n}d"}
    assert pixelize.report(converted).multiply_adds_after > pixelize.report(converted).multiply_adds_before
    assert f"k{LAYERS[n][0][2]}" in str(pixelize.report(converted))
    torch.testing.assert_close(pixelize.fold(converted)(x), model(x), rtol=0, atol=1e-12)
    back = pixelize.revert(converted)
    assert type(back.net[3]) is type(model.net[3])
    assert torch.equal(back(x), model(x))


@axes
def test_saved_and_loaded(n, tmp_path):
    x = inputs(n)
    model = trained(pixelize.convert(decoder(n), schedule="near", example_inputs=inputs(n)))
    pixelize.set_input_gate(model.net[3], 0.25)
    loaded = pixelize.load(pixelize.save(model, tmp_path / "saved"), into=decoder(n, seed=2))
    assert torch.equal(loaded(x), model(x))


@axes
@schedules
def test_a_closed_gate_is_hardened(n, schedule):
    x = inputs(n)
    model = trained(pixelize.convert(decoder(n), schedule=schedule, example_inputs=x))
    pixelize.set_input_gate(model, 0.0)
    hard = pixelize.harden(copy.deepcopy(model))
    assert isinstance(hard.net[4], getattr(pixelize, f"PixelDCL{n}d"))
    assert sum(p.numel() for p in hard.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(hard(x), model(x), rtol=0, atol=1e-12)


@axes
@schedules
def test_least_squares_recovers_a_pixel_deconvolution(n, schedule):
    """Fitted on its own inputs and outputs, with another start, a PixelDCL is found again."""
    torch.manual_seed(3)
    layers = [
        getattr(pixelize, f"PixelDCL{n}d")(*LAYERS[n][1], schedule=schedule, dtype=torch.float64)
        for _ in range(2)
    ]
    teacher, student = layers
    for kernel in teacher.dependency_kernels:
        nn.init.normal_(kernel, std=0.1)
    student.bias = teacher.bias
    size = {1: (60,), 3: (8, 9, 10)}[n]
    pairs = [(x, teacher(x).detach()) for x in torch.randn(5, 12, 4, *size, dtype=torch.float64)]
    assert fit_layer(student, lambda: pairs) < 1e-3


@axes
@pytest.mark.parametrize("schedule", ["paired", "near"])
def test_calibration_comes_closer_than_the_weights_alone(n, schedule):
    model, x = decoder(n), inputs(n, 4)
    data = [inputs(n, 8, seed) for seed in range(2, 10)]
    errors = []
    for more in ({}, {"init": "calibrate", "data": data}):
        converted = pixelize.convert(model, "pixeldcl", schedule=schedule, example_inputs=inputs(n), **more)
        errors.append(float((converted(x) - model(x)).detach().norm() / model(x).detach().norm()))
        assert all(0 <= row.error < 1 for row in pixelize.report(converted).converted)
    assert errors[1] < errors[0] < 1
    pixelize.calibrate(converted, data, joint_steps=2, progress=False)


@axes
def test_auto_stays_within_its_tolerance(n):
    data = [inputs(n, 8, seed) for seed in range(2, 6)]
    model = pixelize.convert(decoder(n), "auto", data=data, tolerance=0.6)
    rows = pixelize.report(model).converted
    assert len(rows) == 2 and all(row.error <= 0.6 for row in rows)


@axes
def test_a_window_of_other_axes_is_refused(n):
    model, x = decoder(n), inputs(n)
    with pytest.raises(ArgumentError, match=f"net.3: dependency_kernel_size .* {n} axes"):
        pixelize.convert(model, dependency_kernel_size=(3, 3), example_inputs=x)
    window = (3, 1, 2)[:n]
    layer = pixelize.convert(model, dependency_kernel_size=window, example_inputs=x).net[3]
    assert layer.dependency_kernel_size == window


@axes
@pytest.mark.parametrize("name", ["PixelDCL", "iPixelDCL"])
@schedules
def test_folded_layers_are_the_same_away_from_the_border(n, name, schedule):
    torch.manual_seed(4)
    for arguments in LAYERS[n]:
        layer = getattr(pixelize, f"{name}{n}d")(*arguments, schedule=schedule, dtype=torch.float64)
        folded = pixelize.fold(nn.Sequential(layer))
        size = 30 if n == 1 else 12
        x = torch.randn(1, 4, *(size,) * n, dtype=torch.float64)
        expected, got = layer(x), folded(x)
        assert type(folded[0]) is kind("ConvTranspose", n) and got.shape == expected.shape
        # as many low-resolution pixels as the stages reach in a row
        reach = sum(max(map(abs, f.offset)) for stage in layer.plan.stages for f in farthest(stage)) + 1
        inner = (..., *(slice(reach * s, -reach * s) for s in layer.stride))
        torch.testing.assert_close(got[inner], expected[inner], rtol=0, atol=1e-9)


def farthest(stage):
    features = [f for target in stage.targets for f in stage.features(target)]
    return [max(features, key=lambda f: max(map(abs, f.offset)))]


@axes
def test_inherited_from_the_weights_alone(n):
    """The first phase is the original's, the expected error what white noise shows, more or less."""
    torch.manual_seed(5)
    original = kind("ConvTranspose", n)(*LAYERS[n][0], dtype=torch.float64)
    layer, error, _ = inherit(original, "pixeldcl", Design((3,) * n, schedule="near"), "inherit")
    x = torch.randn(2, 4, *(12,) * n, dtype=torch.float64)
    first = (slice(a, None, s) for a, s in zip(layer.anchor, layer.stride, strict=True))
    gap = (layer(x) - original(x))[(..., *first)]
    assert gap.abs().max() < 1e-12 and 0 <= error < 1


class Convolutions(nn.Module):
    """A strided convolution with a parametrization, a plain one called twice, one of a single tap."""

    def __init__(self, n):
        super().__init__()
        conv = kind("Conv", n)
        self.down = torch.nn.utils.parametrizations.weight_norm(conv(2, 4, 3, 2, 1))
        self.twice = conv(4, 4, 3, padding="same", padding_mode="replicate", groups=2)
        self.last = conv(4, 3, 1)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.down(x)).relu()))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_convolutions_on_request(n, tmp_path):
    torch.manual_seed(6)
    model, size = Convolutions(n).double(), (9, 6, 7)[:n]
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    assert not pixelize.inspect(model, x).found
    with pytest.raises(ArgumentError, match="sites has 'conv'"):
        pixelize.convert(model, "pixeldcl", sites=("conv",))
    new = pixelize.convert(model, sites=("conv",), schedule="near", example_inputs=x)
    rows = pixelize.report(new).converted
    assert [(row.name, row.layer) for row in rows] == [
        ("down", f"iPixelConv{n}d"),
        ("twice", f"iPixelConv{n}d"),
    ]
    assert pixelize.report(new).error < 1e-14
    other = torch.randn(1, 2, *(s + 1 for s in size), dtype=torch.float64)
    torch.testing.assert_close(new(other), model(other), rtol=0, atol=1e-12)
    folded = pixelize.fold(new)
    assert type(folded.down) is kind("Conv", n)
    torch.testing.assert_close(folded(other), model(other), rtol=0, atol=1e-12)
    assert torch.equal(pixelize.revert(copy.deepcopy(new))(x), model(x))
    trained(new)
    with pytest.raises(pixelize.PixelizeError, match="down: each phase"):
        pixelize.fold(new)
    pixelize.set_input_gate(new.down, 0.5)
    loaded = pixelize.load(pixelize.save(new, tmp_path / "gated"), into=Convolutions(n).double())
    assert torch.equal(loaded(x), new(x))
    pixelize.set_input_gate(new, 0.0)
    hard = pixelize.harden(copy.deepcopy(new))
    assert type(hard.twice) is getattr(pixelize, f"PixelConv{n}d")
    torch.testing.assert_close(hard(x), new(x), rtol=0, atol=1e-12)
    loaded = pixelize.load(pixelize.save(hard, tmp_path / "hard"), into=Convolutions(n).double())
    assert torch.equal(loaded(x), hard(x))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["paired", "near"])
def test_a_pixel_convolution_is_fitted(n, schedule, tmp_path):
    """Nearer to the original than a PixelConv without dependencies; saved, loaded and undone."""
    torch.manual_seed(0)
    conv = getattr(nn, f"Conv{n}d")
    model = nn.Sequential(conv(2, 4, 3, padding=1), nn.Tanh(), conv(4, 4, 3, padding=1, groups=2)).eval()
    size = {1: (61,), 2: (13, 12), 3: (7, 8, 6)}[n]
    data = [torch.randn(8, 2, *size).cumsum(-1) / 4 for _ in range(6)]
    fresh = torch.randn(8, 2, *size).cumsum(-1) / 4
    with pytest.raises(pixelize.ArgumentError, match="has to be fitted"):
        pixelize.convert(model, "pixeldcl", sites=("conv",))
    fitted = pixelize.convert(
        model, "pixeldcl", sites=("conv",), init="calibrate", data=data, schedule=schedule
    )
    assert {type(m).__name__ for m in (fitted[0], fitted[2])} == {f"PixelConv{n}d"}
    wanted = model(fresh)
    untouched = pixelize.convert(model, sites=("conv",), schedule=schedule)
    pixelize.set_input_gate(untouched, 0.0)  # a PixelConv whose kernels are zero
    error = (fitted(fresh) - wanted).norm()
    assert error < 0.9 * (untouched(fresh) - wanted).norm()
    row = next(s for s in pixelize.report(fitted).sites if s.name == "2")
    assert 0 < row.error < 1
    # each stage is a least-squares optimum on the data: no other kernel of its last stage does better there
    layer = fitted[2]
    x = torch.cat([fitted[1](fitted[0](d)) for d in data]).detach()
    y = torch.cat([model(d) for d in data]).detach()
    best = (layer(x) - y).square().sum()
    with torch.no_grad():
        for way in (1.02, 0.98):
            kept = layer.dependency_kernels[-1].clone()
            layer.dependency_kernels[-1].mul_(way)
            assert (layer(x) - y).square().sum() > 0.999 * best
            layer.dependency_kernels[-1].copy_(kept)
    pixelize.save(fitted, tmp_path)
    loaded = pixelize.load(tmp_path, into=copy.deepcopy(model))
    assert torch.equal(loaded(fresh), fitted(fresh))
    assert torch.equal(pixelize.revert(fitted)(fresh), wanted)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_least_squares_recovers_a_pixel_convolution(n):
    """What a PixelConv itself made is fitted exactly, in float64, at odd sizes, in every padding mode."""
    for mode, padding in (("zeros", 1), ("reflect", 1), ("zeros", "same")):
        torch.manual_seed(1)
        kind = getattr(pixelize, f"PixelConv{n}d")
        teacher = kind(2, 8, 3, padding=padding, padding_mode=mode, schedule="near").double()
        student = copy.deepcopy(teacher)
        for kernel in student.dependency_kernels:
            nn.init.zeros_(kernel)
        size = {1: (41,), 2: (11, 9), 3: (7, 5, 6)}[n]
        x = torch.randn(64, 2, *size, dtype=torch.float64)
        with torch.no_grad():
            y = teacher(x)
        error = fit_layer(student, lambda x=x, y=y: [(x, y)])
        assert error < 1e-4
        torch.testing.assert_close(student(x), y, rtol=0, atol=1e-3)


DESIGNS = {
    "iPixelDCL": {"layer": "ipixeldcl"},
    "PixelDCL": {"layer": "pixeldcl", "init": "calibrate"},
    "iPixelConv": {"layer": "ipixeldcl", "sites": ("conv",)},
    "PixelConv": {"layer": "pixeldcl", "sites": ("conv",), "init": "calibrate"},
}


@axes
@pytest.mark.parametrize("name", DESIGNS)
def test_from_finding_to_taking_it_back(n, name, tmp_path):
    """inspect, convert, report, cost, parameter groups, save, load, export, measure, repair, fold, revert."""
    torch.manual_seed(0)
    model = nn.Sequential(
        kind("Conv", n)(2, 4, 3, padding=1), nn.Tanh(), kind("ConvTranspose", n)(4, 2, 3, 2, 1, 1)
    ).eval()
    size, design = {1: (70,), 3: (8, 9, 10)}[n], dict(DESIGNS[name])
    x, conv = torch.randn(12, 2, *size), name.endswith("Conv")
    if "init" in design:
        design["data"] = x.split(4)
    wanted, own = model(x), model[0 if conv else 2]
    assert any(s.name == "2" for s in pixelize.inspect(model, x).sites)
    converted = pixelize.convert(model, example_inputs=x, schedule="near", **design)
    layer = converted[0 if conv else 2]
    assert type(layer).__name__ == f"{name}{n}d"
    report = pixelize.report(converted)
    (row,) = report.converted
    assert row.layer == f"{name}{n}d" and row.layer in str(report) and row.layer in report._repr_html_()
    counts = [sum(p.numel() for p in m.parameters()) for m in (own, layer)]
    assert [row.parameters_before, row.parameters_after] == counts
    assert row.multiply_adds_before > 0 and row.multiply_adds_after > 0
    made = converted(x)
    assert torch.allclose(made, wanted, atol=1e-5) == name.startswith("i")
    groups = pixelize.param_groups(converted, lr=1.0, dependency_lr=0.1)
    assert {g["lr"] for g in groups} == {1.0, 0.1}
    pixelize.save(converted, tmp_path)
    loaded = pixelize.load(tmp_path, into=copy.deepcopy(model))
    assert torch.equal(loaded(x), made)
    exported = torch.export.export(converted, (x,)).module()
    torch.testing.assert_close(exported(x), made)
    before = pixelize.checkerboard_nd(made)["worst"]
    repaired = pixelize.repair(converted, x, progress=False, limits=RepairLimits(rounds=2, portion=6))
    assert type(repaired[0 if conv else 2]) is type(layer)
    assert pixelize.checkerboard_nd(repaired(x))["worst"] <= before - (3 if name.startswith("i") else 0)
    if name == "PixelConv":
        with pytest.raises(pixelize.PixelizeError):
            pixelize.fold(converted)
    else:
        folded = pixelize.fold(converted)
        assert type(folded[0 if conv else 2]) is type(own)
        middle = (..., *(slice(s // 2 - 2, s // 2 + 2) for s in made.shape[2:]))
        assert (folded(x)[middle] - made[middle]).abs().max() < 1e-4
    assert torch.equal(pixelize.revert(converted)(x), wanted)
