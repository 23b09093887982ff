"""Training a layer's kernels together gets closer than least squares stage by stage, and never falls
behind.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import pixelize
from pixelize import ArgumentError, PixelDCL2d
from pixelize.calibration import whitened_adam
from pixelize.calibration.joint_fit import fit_jointly
from pixelize.calibration.layer_fit import fit_layer, layer_error
from pixelize.calibration.whitened_adam import WhitenedAdam
from pixelize.inheritance.inherit import Design, inherit

with torch.random.fork_rng():  # the same weights whatever was imported before
    torch.manual_seed(0)
    ORIGINALS = {
        "k4 s2": nn.ConvTranspose2d(8, 4, 4, 2, 1),
        "grouped": nn.ConvTranspose2d(8, 4, 4, 2, 1, groups=2),
        "k3 s2": nn.ConvTranspose2d(8, 6, 3, 2, 1, 1),
        "k5 s3": nn.ConvTranspose2d(8, 5, 5, 3, 1),
        "dilated": nn.ConvTranspose2d(8, 6, 4, 3, 1, dilation=2),
        "oblong": nn.ConvTranspose2d(8, 6, (4, 3), (2, 1), (1, 1)),
    }
DESIGNS = {
    "paired": Design(),
    "sequential": Design(schedule="sequential"),
    "masked": Design(schedule="masked"),
    "depthwise": Design(),
    "even": Design(kernel_size=(2, 2)),
    "two phases see the input": Design(input_stages=1),
}
CASES = [
    (original, design)
    for original in ORIGINALS
    for design in DESIGNS
    if (original, design)
    not in (
        ("k5 s3", "masked"),  # is for stride 2
        ("dilated", "masked"),
        ("oblong", "masked"),
        ("oblong", "two phases see the input"),  # all that it has: exact
    )
]


def mixed(n, channels, seed):
    """Maps whose channels and pixels have much in common."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, 9, 8, generator=random)
    x = nn.functional.avg_pool2d(x, 3, 1) + 0.3
    return torch.einsum("ij,njhw->nihw", torch.randn(channels, channels, generator=random), x)


@pytest.mark.parametrize(("original", "design"), CASES)
def test_it_gets_closer_than_least_squares(original, design):
    plain = ORIGINALS[original]
    wanted = DESIGNS[design]
    if design == "depthwise":
        wanted = replace(wanted, groups=plain.out_channels)
    layer, _, _ = inherit(plain, "pixeldcl", wanted, "zero")
    assert type(layer) is PixelDCL2d and layer.input_stages == wanted.input_stages
    pairs = [(x, plain(x).detach()) for x in mixed(128, 8, seed=1).split(32)]
    before = fit_layer(layer, lambda: pairs)
    bias = layer.bias.clone()
    simplest = (original, design) == ("k4 s2", "paired")
    after = fit_jointly(layer, lambda: pairs, 400 if simplest else 60)
    assert after == pytest.approx(layer_error(layer, lambda: pairs), rel=1e-6)
    assert after < before
    if simplest:
        assert after < 0.9 * before
    assert torch.equal(layer.bias, bias)


def test_what_is_no_better_on_samples_held_back_is_not_kept():
    """Targets of noise: whatever is learned of them holds for the samples that it was learned from."""
    plain = ORIGINALS["k3 s2"]
    layer, _, _ = inherit(plain, "pixeldcl", Design(), "zero")
    pairs = [(x, torch.randn_like(plain(x))) for x in mixed(64, 8, seed=1).split(16)]
    before = fit_layer(layer, lambda: pairs)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    assert fit_jointly(layer, lambda: pairs, 8) == before
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


def test_one_sample_is_not_held_back_and_half_precision_is_trained_in_single():
    plain = nn.ConvTranspose2d(8, 6, 4, 2, 1).bfloat16()
    layer, _, _ = inherit(plain, "pixeldcl", Design(), "zero")
    pairs = [(x, plain(x).detach()) for x in mixed(1, 8, seed=2).bfloat16().split(1)]
    before = fit_layer(layer, lambda: pairs)
    assert fit_jointly(layer, lambda: pairs, 30) <= before
    assert layer.weight.dtype == torch.bfloat16


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.ConvTranspose2d(8, 3, 4, 2, 1),
    ).eval()  # fmt: skip


def test_calibration_trains_layers_together_when_asked_to():
    model, data = network(), mixed(256, 3, seed=3).split(32)
    x = mixed(32, 3, seed=3)
    wanted = model(x)
    errors, missed = [], []
    for steps in (0, 100):
        student = pixelize.convert(model, "pixeldcl")
        pixelize.calibrate(student, data, joint_steps=steps, progress=False)
        errors.append(pixelize.report(student).converted[0].error)
        missed.append(float((student(x) - wanted).detach().norm()))
    assert errors[1] < 0.9 * errors[0]
    assert missed[1] < missed[0]
    assert not any(p.grad is not None for p in student.parameters())
    torch.testing.assert_close(pixelize.revert(student)(x), wanted)
    with pytest.raises(ArgumentError, match="joint_steps"):
        pixelize.calibrate(student, data, joint_steps=-1)


def convolution(weight):
    """1x1, with ``weight`` (C_out, C_in)."""
    conv = nn.Conv2d(*weight.shape[1::-1], 1, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight[..., None, None])
    return conv


def outputs_while_trained(model, x, wanted, optimizer=lambda model, x: WhitenedAdam(model, [x], lr=0.02)):
    optimizer = optimizer(model, x)
    for _ in range(10):
        optimizer.zero_grad()
        (model(x) - wanted).square().mean().backward()
        optimizer.step()
    return model(x).detach()


def test_a_mixture_of_the_channels_changes_next_to_nothing():
    # L^-T of the moments of A x is A^-T L^-T for a lower triangular A: the same steps of the output, but for
    # the ridge that is added to the moments
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    wanted, start = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    mixture = torch.tril(torch.randn(5, 5, dtype=torch.float64), -1) / 2
    mixture += torch.diag(torch.linspace(0.5, 2, 5, dtype=torch.float64))
    mixed_x = torch.einsum("ij,njhw->nihw", mixture, x)

    def difference(**optimizer):
        """Of what the training changed in the outputs."""
        found = outputs_while_trained(convolution(start), x, wanted, **optimizer)
        other = outputs_while_trained(convolution(start @ mixture.inverse()), mixed_x, wanted, **optimizer)
        return float((other - found).norm() / (found - convolution(start)(x).detach()).norm())

    assert difference() < 0.03
    assert difference(optimizer=lambda model, x: torch.optim.Adam(model.parameters(), lr=0.02)) > 0.3


def test_a_rotation_of_the_outputs_changes_nothing():
    x, wanted = torch.randn(4, 5, 6, 6, dtype=torch.float64), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    start, rotation = (torch.randn(3, n, dtype=torch.float64) for n in (5, 3))
    rotation = torch.linalg.qr(rotation)[0]
    found = []
    for turn in (torch.eye(3, dtype=torch.float64), rotation):
        behind = convolution(torch.diag(torch.arange(1.0, 4).double()) @ turn).requires_grad_(False)
        model = nn.Sequential(convolution(turn.T @ start), behind)
        found.append(outputs_while_trained(model, x, wanted))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


def test_gradients_and_changes_are_turned_by_adjoint_maps():
    layer = PixelDCL2d(8, 4, 4, 2, 1, groups=2, dependency_groups=2, input_stages=1)
    optimizer = WhitenedAdam(layer, [mixed(4, 8, seed=4)])
    for parameter in layer.parameters():
        state = optimizer.state[parameter]
        gradient = torch.randn_like(parameter)
        turned = whitened_adam._to_coordinates(gradient, state)
        u = torch.randn_like(turned)
        change = whitened_adam._to_kernel(u, state, parameter)
        assert change.shape == parameter.shape
        torch.testing.assert_close((turned * u).sum(), (gradient * change).sum(), rtol=1e-4, atol=1e-4)
    whitened = [p for p in layer.parameters() if "channels" in optimizer.state[p]]
    assert len(whitened) == len(list(layer.parameters())) - 1  # all but the bias


@pytest.mark.parametrize("layer", ["pixeldcl", "ipixeldcl", "dcl"])
@pytest.mark.parametrize("kind", ["shuffle", "resize with a skip", "bilinear"])
def test_layers_that_stand_in_the_place_of_convolutions_are_trained_as_themselves(kind, layer):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(5 if "skip" in kind else 3, 8, 3, padding=1)

        def forward(self, x):
            if kind == "shuffle":
                return nn.functional.pixel_shuffle(self.c(x), 2)
            mode = "bilinear" if kind == "bilinear" else "nearest"
            u = nn.functional.interpolate(x, scale_factor=2, mode=mode)
            return self.c(torch.cat([u, u[:, :2].flip(-1)], 1) if "skip" in kind else u)

    torch.manual_seed(0)
    x, model = mixed(4, 3, seed=5), Model()
    student = pixelize.convert(model, layer, example_inputs=x)
    inner = student.c.layer
    whole, wanted = WhitenedAdam(student, [x]), model(x).detach() * 1.2
    for name, parameter in inner.named_parameters():
        if "input_kernels" not in name and parameter.dim() > 1:
            assert whole.state[parameter]["channel_axis"] == (0 if name == "weight" else 1)
            assert len(whole.state[parameter]["outputs"][0]) * inner.groups == inner.out_channels
    first = (student(x) - wanted).square().mean().item()
    for _ in range(10):
        whole.zero_grad()
        (student(x) - wanted).square().mean().backward()
        whole.step()
    assert (student(x) - wanted).square().mean() < first


def test_a_resumed_optimizer_goes_on_as_one_that_was_not_stopped():
    def run(stop):
        torch.manual_seed(0)
        model, x = network(), torch.randn(4, 3, 5, 5)
        student = pixelize.convert(model, "pixeldcl")
        optimizer = WhitenedAdam(student, [x])
        for step in range(4):
            if step == 2 and stop:
                state = optimizer.state_dict()
                optimizer = WhitenedAdam(student, [torch.randn(4, 3, 5, 5)])
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            (student(x) - 1).square().mean().backward()
            optimizer.step()
        return student.state_dict()

    for a, b in zip(run(True).values(), run(False).values(), strict=True):
        assert torch.equal(a, b)


def test_the_optimizer_says_what_it_cannot_do():
    model, x = network(), torch.randn(2, 3, 5, 5)
    with pytest.raises(ArgumentError, match="negative"):
        WhitenedAdam(model, [x], lr=-1)
    with pytest.raises(ArgumentError, match="empty"):
        WhitenedAdam(model, [])
    with pytest.raises(ArgumentError, match="frozen"):
        WhitenedAdam(model.requires_grad_(False), [x])
