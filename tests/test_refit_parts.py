"""The parts that a repair is made of, each against something slow and obvious."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from pattern_zoo import smooth
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import pixelize
from pixelize.measure.checkerboard import artifact_power, frequencies, peak_and_around, window_sizes
from pixelize.refit.calls import Call, Watch, calls_of, named_parameters, replaced
from pixelize.refit.coordinates import WhitenedWeights
from pixelize.refit.last_convolution import LastConvolution
from pixelize.refit.limits import RepairLimits
from pixelize.refit.powers import Windows, powers
from pixelize.refit.prefix_cache import Replay
from pixelize.refit.price import Price
from pixelize.refit.steady import Steady


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("period", [2, 3, 4])
def test_powers_are_those_of_the_measure(period: int) -> None:
    y = drawn(6, 3, 48, 50, seed=1)
    windows = Windows((48, 50), period)
    forms = window_sizes(48, 50, period)
    wanted = [(form, f) for form in forms for f in frequencies(period)]
    found = powers(y.double(), windows, wanted)
    height, width = windows.whole
    whole = artifact_power(y[..., :height, :width].flatten(0, 1).double(), (period, period))
    for form, table in whole.by_form.items():
        for f in frequencies(period):
            peak = peak_and_around(table / whole.planes, f, (period, period), form)[0]
            if form == "global" or (height, width) == (48, 50):
                assert found[form, f].item() == pytest.approx(peak.item(), rel=1e-6)


LAYERS = {
    "transposed": nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2),
    "dilated": nn.ConvTranspose2d(6, 4, 3, 2, 2, 0, dilation=2),
    "convolution": nn.Conv2d(6, 4, 3, 1, 1, groups=2),
    "strided": nn.Conv2d(6, 4, (3, 2), 2, 1),
    "one dimension": nn.Conv1d(6, 4, 3, padding=1),
    "linear": nn.Linear(6, 4),
}


@pytest.mark.parametrize("largest", [1000, 4], ids=["exact", "channels times taps"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_whitened_coordinates_cost_what_the_layer_makes(layer: nn.Module, largest: int) -> None:
    """|u|^2 is the mean square change of what the layer makes of such data; at zero it is as it was."""
    shape = {nn.Linear: (4096, 6), nn.Conv1d: (64, 6, 64)}.get(type(layer), (64, 6, 24, 24))
    x = drawn(*shape, seed=1)  # white, so that channels times taps is exact too
    calls: list[Call] = []
    with Watch(lambda number, call, compute: (calls.append(call), compute(call.input))[1]), torch.no_grad():
        before = layer(x)
    weights = WhitenedWeights(layer.weight, calls, largest, ridge=1e-6)
    assert torch.equal(weights.value(), layer.weight)
    with torch.no_grad():
        weights.u.copy_(drawn(*weights.u.shape, seed=2))
        value = weights.value()
        with replaced(layer, {"weight": value}):
            change = layer(x) - before
        phases = math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1
        outs = weights.u.shape[0] * weights.u.shape[2]
        expected = weights.u.square().sum() / (phases * outs)
    assert change.square().mean().item() == pytest.approx(expected.item(), rel=0.15)


def test_a_replay_gives_what_a_run_gives() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh()
    )
    x = drawn(2, 3, 16, 16)
    replay = Replay(1, 2, 2**20)
    with torch.no_grad():
        with replay.batch(0):
            first = model(x)
        expected = first.clone()
        model[0].weight.zero_()  # not looked at again
        with replay.batch(0):
            assert torch.equal(model(x), expected)
        replay.forget()
        with replay.batch(0):
            assert not torch.equal(model(x), expected)


def test_calls_are_seen_whoever_makes_them() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(drawn(8, 3, 3, 3))
            self.normed = weight_norm(nn.ConvTranspose2d(8, 4, 4, 2, 1))
            self.listed = [nn.Conv2d(4, 3, 3, padding=1)]
            self.modules = []  # a name of torch's own

        def forward(self, x: Tensor) -> Tensor:
            return self.listed[0](self.normed(F.conv2d(x, self.kernel, padding=1)))

    model, x = Model(), drawn(1, 3, 16, 16)
    seen = calls_of(model, lambda: model(x))
    assert [c.kind for c in seen] == ["convolution", "transposed", "convolution"]
    assert [c.weight for c in seen] == ["kernel", "normed.parametrizations.weight.original1", ""]
    assert "no parameter" in seen[2].doubts
    assert seen[1].read == (2, 2) and seen[1].made == (1, 1)
    with torch.no_grad(), replaced(model, {"kernel": torch.zeros(8, 3, 3, 3)}):
        assert torch.equal(model(x)[0, 0, 5, 5], model(0 * x)[0, 0, 5, 5])
    assert model.kernel is named_parameters(model)["kernel"] and model.kernel.abs().sum() > 0


STEADY = {
    "transposed": (nn.ConvTranspose2d(6, 4, 6, 2, 2, groups=2), 1),
    "three phases across": (nn.ConvTranspose2d(3, 2, (3, 6), (1, 3), 1), 1),
    "shuffled": (nn.Conv2d(3, 8, 3, padding=1), 2),
    "shuffled in groups": (nn.Conv2d(4, 16, (3, 1), groups=2), 2),
}


@pytest.mark.parametrize("name", list(STEADY))
def test_steady_input_gets_one_answer_from_all_phases_at_the_least_change(name: str) -> None:
    layer, factor = STEADY[name]
    layer = deepcopy(layer)
    seen: list[Call] = []
    x = drawn(8, layer.in_channels, 24, 20, seed=2).cumsum(-1) / 4 + 1
    with torch.no_grad(), Watch(lambda number, call, compute: seen.append(call) or compute(call.input)):
        before = layer(x)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    steady = Steady(layer.weight, layer.bias if factor > 1 else None, seen, factor)

    def pattern_and_change(mu: float) -> tuple[float, float]:
        new, other = steady.solved(mu)
        with torch.no_grad():
            layer.weight.copy_(new)
            layer.bias.copy_(bias if other is None else other)
            change = (layer(x) - before).square().mean().item()
            constant = F.pixel_shuffle(layer(torch.ones_like(x)), factor)[..., 6:-6, 6:-6]
        return (constant - constant.roll(1, -1)).abs().max().item(), change

    patterns, changes = zip(*(pattern_and_change(mu) for mu in (1e-9, 1.0, 1e9)), strict=True)
    assert changes[0] < 1e-9 and patterns[2] < 1e-4 < patterns[1] < patterns[0]
    # another answer in common for all phases, or the plain mean of the phases' sums, changes more
    whole = layer.weight.detach().clone()
    for seed in range(3):
        with torch.no_grad():
            layer.weight.copy_(whole + 0.02 * drawn(*whole.shape[:2], 1, 1, seed=seed) * (factor == 1))
            if factor > 1:
                pull = drawn(whole.shape[0] // 4, *whole.shape[1:], seed=seed)
                layer.weight.copy_(whole + 0.02 * pull.repeat_interleave(4, 0))
            assert (layer(x) - before).square().mean().item() > changes[2]
            layer.weight.copy_(weight)


def test_a_step_from_which_nothing_finite_comes_is_taken_back() -> None:
    class Brittle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            room = 0.4 - (self.up.weight - first).square().sum()
            broken.append(room.item() < 0)
            return self.up(x) + room.clamp(max=0).sqrt()  # NaN far away

    model, broken = Brittle(), []
    first = model.up.weight.detach().clone()
    x = drawn(8, 3, 16, 16, seed=3).cumsum(-1)
    repaired = pixelize.repair(model, x, progress=False, limits=RepairLimits(steady=()))
    assert any(broken) and repaired(x).isfinite().all()
    assert pixelize.repair_report(repaired).repaired


@pytest.mark.parametrize("kernel", [3, 9])
@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (2, 2)])
def test_a_last_convolution_becomes_blind_to_lines_at_the_least_change(
    kernel: int, groups: int, dilation: int
) -> None:
    channels, edge = 24, dilation * (kernel // 2)
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 2 * groups, kernel, padding=edge, dilation=dilation, groups=groups)
    along = torch.arange(80)
    line = (-1.0) ** (along[:, None] + along)  # at (1/2,1/2)
    strength = drawn(6, channels, 1, 1, seed=1) + 1
    x = smooth(6, channels, 80, 2) + strength * line
    call = Call("convolution", x, layer.weight, None, (1, 1), (edge,) * 2, (dilation,) * 2, groups)
    windows = Windows((48, 48), 2)
    price = Price(torch.ones(48, 48), torch.ones(48, 48, dtype=torch.bool), windows)
    last = LastConvolution(layer.weight, [call], {(0.5, 0.5): 1.0}, price)

    def outcome(weight: Tensor, x: Tensor = x) -> tuple[float, float]:
        """The power at the line, and the mean square change."""
        with torch.no_grad():
            before = layer(x)
            now = F.conv2d(x, weight, layer.bias, 1, edge, dilation, groups)
            found = powers(now[..., 16:64, 16:64], windows, [("global", (0.5, 0.5))])
        return float(found["global", (0.5, 0.5)]), (now - before).square().mean().item()

    none, some, all_ = (outcome(last.solved(mu)[0]) for mu in (1e-9, 1.0, 1e6))
    assert none[1] < 1e-9 and all_[0] < 1e-3 * some[0] < 1e-3 * none[0]
    others = smooth(6, channels, 80, 3) + (drawn(6, channels, 1, 1, seed=4) - 2) * line  # other mixtures
    assert outcome(last.solved(1e6)[0], others)[0] < 1e-3 * outcome(layer.weight.detach(), others)[0]
    if kernel > 3:
        return
    for seed in range(3):  # no other weight that is as blind changes less
        change = drawn(groups, kernel**2, channels // groups, 2, seed=seed) * 0.05
        other = last.within(change).permute(0, 3, 2, 1).reshape(layer.weight.shape)
        line_power, moved = outcome(last.solved(1e6)[0] + other)
        assert line_power < 1e-3 * some[0] and moved > all_[1]
