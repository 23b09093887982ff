"""Calibration recovers what can be recovered, helps where it cannot, and leaves the original model alone."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import pixelize
from pixelize import ArgumentError, PixelDCL2d, PixelizeError, iPixelDCL2d
from pixelize.algebra.interpolation import interpolation
from pixelize.algebra.least_squares import NormalEquations
from pixelize.calibration.layer_fit import fit_layer
from pixelize.calibration.teacher import CachedPairs, TeacherStudent
from pixelize.conversion.calibrate import calibrate
from pixelize.inheritance.inherit import Design, inherit
from pixelize.inheritance.prior import prior_before
from pixelize.inheritance.prior_fit import CORRELATION, InputPrior, fit_from_prior
from pixelize.rewrites.site import TransposedConv, geometry_of

DESIGNS = [
    dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=4, stride=2, padding=1, schedule="sequential"),
    dict(kernel_size=4, stride=2, padding=1, schedule="masked"),
    dict(kernel_size=4, stride=2, padding=1, dependency_groups=2),
    dict(kernel_size=4, stride=2, padding=1, dependency_groups=4, schedule="masked"),
    dict(kernel_size=4, stride=2, padding=1, groups=2, dependency_groups=4),
    dict(kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(kernel_size=2, stride=2, bias=False, dependency_kernel_size=2),
    dict(kernel_size=5, stride=3, padding=1, schedule="sequential"),
    dict(kernel_size=8, stride=4, padding=2, dependency_kernel_size=(1, 3)),
    dict(kernel_size=(3, 4), stride=(1, 2), padding=(1, 1)),
    dict(kernel_size=(4, 5), stride=(2, 3), padding=(0, 2), output_padding=(1, 0)),
    dict(kernel_size=3, stride=2, dilation=2, padding=1),
]


def random_layer(kind, design, **more):
    layer = kind(3 * design.get("groups", 1), 4, **design, **more)
    with torch.no_grad():
        for kernel in layer.dependency_kernels:
            kernel.normal_(0, 0.15)
    return layer


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_a_pixeldcl_is_recovered_from_its_inputs_and_outputs(design):
    teacher = random_layer(PixelDCL2d, design)
    student = random_layer(PixelDCL2d, design)
    student.bias = teacher.bias
    pairs = [(x, teacher(x).detach()) for x in torch.randn(6, 20, teacher.in_channels, 6, 7)]
    error = fit_layer(student, lambda: pairs)
    x = torch.randn(2, teacher.in_channels, 5, 9)
    assert error < 1e-3
    assert (student(x) - teacher(x)).norm() < 1e-3 * teacher(x).norm()


@pytest.mark.parametrize("gate", [0.0, 0.5, 1.0])
def test_a_gated_ipixeldcl_is_recovered(gate):
    design = dict(kernel_size=4, stride=2, padding=1)
    teacher, student = iPixelDCL2d(3, 4, **design), iPixelDCL2d(3, 4, **design)
    student.weight, student.bias = teacher.weight, teacher.bias
    for layer in (teacher, student):
        pixelize.set_input_gate(layer, gate)
    with torch.no_grad():
        for kernel in teacher.dependency_kernels:
            kernel.mul_(0.3)
    pairs = [(x, teacher(x).detach()) for x in torch.randn(6, 20, 3, 6, 7)]
    assert fit_layer(student, lambda: pairs) < 1e-3


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 3, 2, 2),
    ).eval()  # fmt: skip


def pictures(n, size=8):
    """Smooth, as what networks see is: white noise has no dependencies between pixels to find."""
    return nn.functional.avg_pool2d(torch.randn(n, 3, size + 2, size + 2), 3, 1)


def test_calibration_beats_the_data_free_fit_and_reports_its_errors():
    model, x = network(), pictures(16)
    wanted = model(x)
    free = pixelize.convert(model, "pixeldcl")
    fitted = pixelize.convert(model, "pixeldcl", init="calibrate", data=pictures(128).split(16))
    assert (fitted(x) - wanted).norm() < 0.9 * (free(x) - wanted).norm()
    assert torch.equal(model(x), wanted)
    rows = pixelize.report(fitted).converted
    assert len(rows) == 3 and all(0 < row.error < 1 for row in rows)


def test_calibrating_twice_changes_little_and_revert_still_works():
    model, data = network(), pictures(64).split(16)
    x, wanted = pictures(4), None
    wanted = model(x)
    fitted = pixelize.convert(model, "pixeldcl", init="calibrate", data=data)
    once = fitted(x)
    assert calibrate(fitted, data, progress=False) is fitted
    assert torch.allclose(fitted(x), once, atol=1e-5)
    assert torch.allclose(pixelize.revert(fitted)(x), wanted, atol=1e-5)


def test_any_iterable_of_tensors_tuples_and_dicts_will_do():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)

        def forward(self, image, twice=False):
            return self.up(self.up(image)) if twice else self.up(image)

    model, images = Model(), pictures(40).split(8)
    expected = pixelize.convert(model, "pixeldcl", init="calibrate", data=images).up.dependency_kernels[0]
    for data in ([(i,) for i in images], [{"image": i} for i in images], (i for i in images)):
        got = pixelize.convert(model, "pixeldcl", init="calibrate", data=data).up.dependency_kernels[0]
        assert torch.equal(got, expected)
    twice = [{"image": i, "twice": True} for i in images]
    assert not torch.equal(
        pixelize.convert(model, "pixeldcl", init="calibrate", data=twice).up.dependency_kernels[0], expected
    )


def test_sites_inside_replacements_are_calibrated():
    class Resized(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8 + 3, 6, 3, padding=1)
            self.shuffled = nn.Conv2d(6, 12, 3, padding=1)

        def forward(self, x):
            up = nn.functional.interpolate(torch.relu(self.first(x)), scale_factor=2)
            skip = nn.functional.avg_pool2d(nn.functional.pad(x, (0, 0, 0, 0)), 1).repeat_interleave(2, -1)
            skip = skip.repeat_interleave(2, -2)
            y = torch.relu(self.conv(torch.cat([up, skip.flip(-1)], 1)))
            return nn.functional.pixel_shuffle(self.shuffled(y), 2)

    torch.manual_seed(2)
    model, x = Resized().eval(), pictures(8)
    free = pixelize.convert(model, "pixeldcl", example_inputs=x)
    fitted = pixelize.convert(
        model, "pixeldcl", init="calibrate", data=pictures(96).split(16), example_inputs=x
    )
    assert {row.kind for row in pixelize.report(fitted).converted} >= {"resize_conv", "pixel_shuffle"}
    wanted = model(x)
    assert (fitted(x) - wanted).norm() < 0.9 * (free(x) - wanted).norm()


def test_the_ridge_is_the_best_one_on_held_back_rows():
    x, noise = torch.randn(1, 60, 50), torch.randn(1, 60, 2)
    beta = torch.randn(1, 50, 2) * 0.1
    equations = NormalEquations(1, 50, 2, torch.device("cpu"))
    equations.add(x, x @ beta + noise, held=False)
    held = torch.randn(1, 500, 50)
    equations.add(held, held @ beta + torch.randn(1, 500, 2), held=True)
    unridged = torch.linalg.lstsq(x, x @ beta + noise).solution
    assert equations.held_error(equations.solve()) < 0.8 * equations.held_error(unridged.double())


def test_what_cannot_be_calibrated_says_so():
    model, data = network(), pictures(8).split(4)
    with pytest.raises(PixelizeError, match="not converted"):
        calibrate(model, data)
    converted = pixelize.convert(model, "pixeldcl")
    state = {k: v.clone() for k, v in converted.state_dict().items()}
    with pytest.raises(ArgumentError, match="empty"):
        calibrate(converted, [])
    with pytest.raises(ArgumentError, match="could not be run"):
        calibrate(converted, [torch.zeros(1, 5, 8, 8)])
    assert all(torch.equal(v, state[k]) for k, v in converted.state_dict().items())


def test_the_prior_fit_is_the_least_squares_fit_to_data_drawn_from_the_prior():
    torch.manual_seed(3)
    mean, deviation = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    noise = torch.randn(96, 6, 40, 40, dtype=torch.float64)
    for axis in (-1, -2):  # first-order autoregression along both axes
        planes = list(noise.unbind(axis))
        for i in range(1, len(planes)):
            planes[i] = CORRELATION * planes[i - 1] + (1 - CORRELATION**2) ** 0.5 * planes[i]
        noise = torch.stack(planes, axis)
    x = (noise * deviation[:, None, None] + mean[:, None, None]).float()
    original = nn.ConvTranspose2d(6, 3, 4, 2, 1)
    prior = InputPrior(mean, deviation)
    free, expected, _ = inherit(original, "pixeldcl", Design(), "inherit", prior)
    fitted, _, _ = inherit(original, "pixeldcl", Design(), "zero")
    pairs = [(part, original(part).detach()) for part in x.split(16)]
    error = fit_layer(fitted, lambda: pairs, first=False)
    inner = (..., slice(8, -8), slice(8, -8))
    missed = (free(x)[inner] - original(x)[inner]).norm() / (
        original(x)[inner] - original.bias[:, None, None]
    ).norm()
    assert float(missed.detach()) == pytest.approx(expected, rel=0.05)
    assert error == pytest.approx(expected, rel=0.1)
    blind, _, _ = inherit(original, "pixeldcl", Design(), "inherit")
    assert (blind(x) - original(x)).norm() > 1.02 * (free(x) - original(x)).norm()


def test_a_batch_norm_tells_the_moments_of_what_follows_it():
    norm, act = nn.BatchNorm2d(5), nn.LeakyReLU(0.2)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    up = nn.ConvTranspose2d(5, 2, 4, 2, 1)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), norm, act, up)
    values = act(norm.train()(torch.randn(4000, 5, 8, 8))).double()
    found = prior_before(list(model.modules()), 4, 5)
    torch.testing.assert_close(found.mean, values.mean((0, 2, 3)), atol=0.01, rtol=0.01)
    torch.testing.assert_close(found.deviation, values.std((0, 2, 3)), atol=0.01, rtol=0.01)
    assert prior_before([nn.Conv2d(3, 5, 1), act, up], 2, 5) is None
    assert prior_before([nn.BatchNorm2d(7), up], 1, 5) is None


def test_what_is_too_large_to_keep_is_made_again():
    batches, passes = pictures(48).split(16), []

    class Data:
        def __iter__(self):
            passes.append(1)
            return iter(batches)

    models = TeacherStudent(pixelize.convert(network(), "pixeldcl"))
    size = sum(x.nbytes + y.nbytes for x, y in CachedPairs(models, "2", batches, 1)())
    for limit, read in ((size, 1), (size - 1, 3)):
        passes.clear()
        pairs = CachedPairs(models, "2", Data(), 1, limit)
        first, *others = (list(pairs()) for _ in range(3))
        assert len(passes) == read and len(first) == 3
        for other in others:
            assert all(map(torch.equal, itertools.chain(*first), itertools.chain(*other)))


def test_favoured_rows_hold_where_they_cost_little_and_not_where_they_cost_much():
    x = torch.randn(1, 400, 6, dtype=torch.float64)
    rows = torch.ones(1, 6, dtype=torch.float64)
    for wanted, holds in ((1.0, True), (2.0, False)):
        beta = torch.full((1, 6, 1), wanted / 6, dtype=torch.float64)
        y = x @ beta + 0.1 * torch.randn(1, 400, 1, dtype=torch.float64)
        equations = NormalEquations(1, 6, 1, torch.device("cpu"))
        equations.add(x[:, :40], y[:, :40], held=False)
        equations.add(x[:, 40:], y[:, 40:], held=True)
        solution = equations.solve_favouring(rows, torch.ones(1, 1, dtype=torch.float64), allowed_cost=1.05)
        assert (abs(float(solution.sum()) - 1) < 3e-3) is holds


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (3, 5)])
def test_what_interpolating_kernels_satisfy(size):
    layer = PixelDCL2d(8, 2, 6, 3, 1, dependency_kernel_size=size)
    a, b, c, d, e, f = torch.randn(6, dtype=torch.float64)

    def surface(y, x):  # at pixels of the output
        return a + b * x + c * x * x + d * y + e * x * y + f * y * y

    for stage in layer.plan.stages:
        rows, wanted = interpolation(stage, layer.stride, torch.eye(2, dtype=torch.float64))
        # the same polynomial in units of the stride, in the order of the rows
        powers = torch.stack([a, 3 * b, 9 * c, 3 * d, 9 * e, 9 * f])
        for channel in (0, 1):
            of_one = powers @ rows.view(6, 2, -1, 2)[:, channel, :, channel]
            at = [[g.source[i] + 3 * g.offset[i] for i in (0, 1)] for g in stage.features(stage.targets[0])]
            torch.testing.assert_close(of_one, torch.stack([surface(y, x) for y, x in at]))
            made = powers @ wanted.view(6, 2, -1, 2)[:, channel, :, channel]
            torch.testing.assert_close(made, torch.stack([surface(y, x) for y, x in stage.targets]))
        assert not rows.view(6, 2, -1, 2)[:, 0, :, 1].any()


def test_a_layer_that_makes_pictures_interpolates_and_one_that_makes_features_does_not():
    for channels in (3, 6):
        original = nn.ConvTranspose2d(8, channels, 4, 2, 1)
        layer, _, _ = inherit(original, "pixeldcl", Design(), "zero")
        pairs = [(x, original(x).detach()) for x in torch.randn(4, 16, 8, 8, 8)]
        fit_layer(layer, lambda pairs=pairs: pairs, allowed_cost=1e6)
        sums = layer.dependency_kernels[0].detach().sum((2, 3))
        assert ((sums - torch.eye(channels)).abs().max() < 0.02) == (channels == 3)


def test_without_data_too_pictures_are_made_by_interpolation():
    def first_kernel(channels, **cost):
        torch.manual_seed(5)
        original = nn.ConvTranspose2d(8, channels, 4, 2, 1)
        original.weight.data += 0.5 * torch.rand(8, channels, 1, 1)  # much in common among the phases
        teacher = TransposedConv(geometry_of(original), original.weight.detach(), None)
        kernels, error = fit_from_prior(teacher, PixelDCL2d(8, channels, 4, 2, 1).plan, (3, 3), 1, **cost)
        return kernels[0].sum((2, 3)), error

    free, least = first_kernel(3)
    kept, error = first_kernel(3, allowed_cost=1e6)
    assert (kept - torch.eye(3)).abs().max() < 0.02 < (free - torch.eye(3)).abs().max()
    assert error > least
    assert (first_kernel(6, allowed_cost=1e6)[0] - torch.eye(6)).abs().max() > 0.02


def expected_error(layer, original, mean):
    """Of what the layer makes under the prior: from its answers to every single pixel of an 11 x 11 map."""
    n, side = layer.in_channels, 11
    pixels = torch.eye(n * side * side, dtype=torch.float64).view(-1, n, side, side)
    with torch.no_grad():
        difference, whole = layer(pixels) - original(pixels), original(pixels) - original(0 * pixels[:1])
    at = torch.arange(side)
    apart = CORRELATION ** (at[:, None] - at).abs().double()
    means = mean[:, None].expand(n, side * side).flatten()
    covariance = torch.kron(torch.eye(n, dtype=torch.float64), torch.kron(apart, apart))
    moments = covariance + means[:, None] * means

    def power(answers):  # of the block of phases in the middle
        middle = slice(side // 2 * 2, side // 2 * 2 + 2)
        rows = answers[..., middle, middle].flatten(1)
        return float((rows * (moments @ rows)).sum())

    return (power(difference) / power(whole)) ** 0.5


@pytest.mark.parametrize("channels", [6, 4])  # the fewer make pictures
@pytest.mark.parametrize("design", ["paired", "sequential", "masked", "grouped", "explained"])
def test_the_error_expected_is_that_of_the_kernels_and_nothing_near_them_is_better(channels, design):
    torch.manual_seed(0)
    original = nn.ConvTranspose2d(3, channels, 4, 2, 1, dtype=torch.float64)
    if design == "explained":  # with as many regressors as the input has pixels, singular but for the ridge
        original.weight.data[1:] = 0
    schedule = design if design in ("sequential", "masked") else "paired"
    shape = Design(schedule=schedule, groups=2 if design == "grouped" else 1)
    mean = torch.randn(3, dtype=torch.float64)
    layer, error, _ = inherit(original, "pixeldcl", shape, "inherit", InputPrior(mean, mean * 0 + 1))
    assert expected_error(layer, original, mean) == pytest.approx(error, rel=1e-6, abs=1e-9)
    if channels == 4:  # interpolates, where that costs little
        return
    for _ in range(5):
        nearby = copy.deepcopy(layer)
        kernel = nearby.dependency_kernels[-1].data
        kernel += 1e-2 * torch.randn_like(kernel)
        assert expected_error(nearby, original, mean) > error


def test_sites_that_the_data_does_not_reach_are_told():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.ConvTranspose2d(3, 3, 4, 2, 1), nn.ConvTranspose2d(3, 3, 4, 2, 1)

        def forward(self, x, other=False):
            return self.b(x) if other else self.a(x)

    model = pixelize.convert(Branches(), "pixeldcl")
    before = model.b.dependency_kernels[0].clone()
    with pytest.warns(pixelize.PixelizeWarning, match=r"left as they were: b$"):
        calibrate(model, pictures(16).split(8), progress=False)
    assert torch.equal(model.b.dependency_kernels[0], before)
