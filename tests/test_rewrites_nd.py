"""The idioms of waveforms and volumes: along one axis and three, what holds for pictures holds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pixelize
from pixelize.rewrites import become, canonical, outline, replacement, state_of, survey
from pixelize.rewrites.applying.passes import plain_layer

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = {1: [(11,), (6,)], 3: [(4, 5, 6), (5, 4, 5)]}
axes = pytest.mark.parametrize("n", [1, 3])


def kind(name: str, n: int):
    return getattr(nn, f"{name}{n}d")


def converted(model: nn.Module, inputs) -> tuple[nn.Module, tuple]:
    """A copy in which every site is done by a plain transposed convolution, and the sites."""
    sites = survey(model, inputs, functional=True).sites
    model = copy.deepcopy(model)
    outline(model, sites)
    for site in sites:
        module = model.get_submodule(site.name)
        layer = plain_layer(canonical(site, module), module)
        become(module, state_of(replacement(site, module, layer)))
    return model, sites


def assert_same(a: nn.Module, b: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(b(*inputs), a(*inputs), rtol=0, atol=1e-12)


class Resized(nn.Module):
    """A resize, perhaps a skip, an affine map for each channel, a convolution."""

    def __init__(self, n, factor, kernel, padding, mode="zeros", resize="nearest", skip=0, pad=None):
        super().__init__()
        self.factor, self.resize, self.pad = factor, resize, pad or nn.Identity()
        self.norm = kind("BatchNorm", n)(4)
        self.conv = kind("Conv", n)(4 + skip, 3, kernel, padding=padding, padding_mode=mode)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        u = self.norm(F.interpolate(x, scale_factor=self.factor, mode=self.resize))
        if skip is not None:
            u = torch.cat([skip[:, :1], u, skip[:, 1:]], 1)
        return self.conv(self.pad(u))


def each(draw, values, n):
    return tuple(draw(st.sampled_from(values)) for _ in range(n))


@axes
@FEW
@given(data=st.data())
def test_a_resize_and_a_convolution_are_one_transposed_convolution(n, data):
    factor, kernel = each(data.draw, [1, 2, 3], n), each(data.draw, [1, 2, 3, 4], n)
    padding = tuple(data.draw(st.integers(0, k)) for k in kernel)
    mode = data.draw(st.sampled_from(["zeros", "replicate"]))
    resize = data.draw(st.sampled_from(["nearest", "nearest-exact", LINEAR[n]]))
    skip = data.draw(st.sampled_from([0, 2]))
    scale = tuple(map(float, factor))
    torch.manual_seed(0)
    model = Resized(n, scale, kernel, padding, mode, resize, skip).double().eval()
    x, other = (torch.randn(2, 4, *size, dtype=torch.float64) for size in SIZES[n])

    def given_to(x):
        size = [s * d for s, d in zip(factor, x.shape[2:], strict=True)]
        return (x, torch.randn(len(x), skip, *size, dtype=x.dtype)) if skip else (x,)

    swapped, sites = converted(model, given_to(x))
    enlarges = any(s > 1 for s in factor)
    inside = all(p < k for p, k in zip(padding, kernel, strict=True))
    fits = inside or mode == "replicate" or resize == LINEAR[n]
    assert [s.kind for s in sites] == ["resize" if max(kernel) == 1 else "resize_conv"] * (enlarges and fits)
    for value in (x, other):
        assert_same(model, swapped, *given_to(value))


@axes
@pytest.mark.parametrize("pad", ["ReplicationPad", "ReflectionPad", "ConstantPad"])
def test_padding_before_the_convolution_is_seen_through(n, pad):
    more = (0.0,) if pad == "ConstantPad" else ()
    model = Resized(n, 2.0, 3, 0, pad=kind(pad, n)(1, *more)).double().eval()
    x, other = (torch.randn(2, 4, *size, dtype=torch.float64) for size in SIZES[n])
    swapped, sites = converted(model, x)
    assert [s.kind for s in sites] == ["resize_conv"]
    assert_same(model, swapped, x)
    assert_same(model, swapped, other)


@axes
def test_padding_on_one_side_only_is_left_alone(n):
    class Causal(nn.Module):
        def forward(self, x):
            return F.pad(x, (0, 0) * (n - 1) + (2, 0))

    model = Resized(n, 2.0, 3, 0, pad=Causal()).double().eval()
    found = survey(model, torch.randn(2, 4, *SIZES[n][0], dtype=torch.float64))
    assert not found.sites and "goes to constant_pad_nd" in found.skipped[0].reason


class Shuffled(nn.Module):
    """A convolution, an activation, and a shuffle with the phases before the channels or behind them."""

    def __init__(self, n, factor, kernel, padding, behind):
        super().__init__()
        channels = 2 * torch.Size(factor).numel()
        self.conv = kind("Conv", n)(3, channels, kernel, padding=padding)
        self.factor, self.behind = factor, behind

    def forward(self, x: Tensor) -> Tensor:
        y, n = F.gelu(self.conv(x)), len(self.factor)
        size = [r * d for r, d in zip(self.factor, y.shape[2:], strict=True)]
        if self.behind:
            y = y.reshape(len(y), 2, *self.factor, *y.shape[2:])
            order = [v for i in range(n) for v in (2 + n + i, 2 + i)]
            return y.permute(0, 1, *order).reshape(len(y), 2, *size)
        y = y.reshape(len(y), *self.factor, 2, *y.shape[2:])
        order = [v for i in range(n) for v in (2 + n + i, 1 + i)]
        return y.permute(0, 1 + n, *order).reshape(len(y), 2, *size)


@axes
@FEW
@given(data=st.data())
def test_a_convolution_and_a_shuffle_are_one_transposed_convolution(n, data):
    factor, kernel = each(data.draw, [1, 2, 3], n), each(data.draw, [1, 2, 3], n)
    padding = tuple(data.draw(st.integers(0, k)) for k in kernel)
    torch.manual_seed(0)
    model = Shuffled(n, factor, kernel, padding, data.draw(st.booleans())).double()
    x, other = (torch.randn(2, 3, *size, dtype=torch.float64) for size in SIZES[n])
    swapped, sites = converted(model, x)
    fits = all(p < k for p, k in zip(padding, kernel, strict=True)) and max(factor) > 1
    assert [s.geometry.stride for s in sites] == [factor] * fits
    for value in (x, other, x[:0]):
        assert_same(model, swapped, value)


@axes
def test_a_convolution_that_is_shuffled_in_parts_is_listed(n):
    class Parts(Shuffled):
        def forward(self, x):
            y, size = self.conv(x), x.shape[2:]
            first = y[:, :, :1].reshape(len(y), 2, 2, 1, *size[1:]).transpose(2, 3)
            rest = y[:, :, 1:].reshape(len(y), 2, 2, size[0] - 1, *size[1:]).transpose(2, 3)
            parts = [p.reshape(len(y), 2, -1, *size[1:]) for p in (first, rest)]
            return torch.cat([parts[0][:, :, 1:], parts[1]], 2)

    model = Parts(n, (2, *(1,) * (n - 1)), (3,) * n, (1,) * n, True)
    found = survey(model, torch.randn(2, 3, *SIZES[n][0]))
    assert not found.sites and "shuffled in parts" in found.skipped[0].reason


@axes
def test_a_normalised_convolution_of_a_resize_has_its_norm_worked_in(n):
    norm = nn.utils.parametrizations.weight_norm
    conv = norm(kind("Conv", n)(3, 4, 3, padding=1))
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv).double()
    x = torch.randn(2, 3, *SIZES[n][0], dtype=torch.float64)
    new = pixelize.convert(model, example_inputs=x)
    assert "worked into the weight" in pixelize.report(new).converted[0].note
    assert_same(model, new, torch.randn(1, 3, *SIZES[n][1], dtype=torch.float64))


@axes
@pytest.mark.parametrize("resize", ["nearest", "linear"])
def test_a_resize_alone_is_a_depthwise_one(n, resize):
    model = nn.Sequential(nn.Upsample(scale_factor=3, mode=LINEAR[n] if resize == "linear" else resize))
    x, other = (torch.randn(2, 4, *size) for size in SIZES[n])
    swapped = pixelize.convert(model, sites=("resize",), example_inputs=x)
    for value in (x, other, torch.randn(1, 3, *SIZES[n][0])):  # the last one is resized as it was
        torch.testing.assert_close(swapped(value), model(value), rtol=0, atol=1e-5)


class Functional(nn.Module):
    """A transposed convolution and a convolution of a resized signal, both called as functions."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.up = nn.Parameter(torch.randn(3, 4, *(4,) * n))
        self.kernel = nn.Parameter(torch.randn(2, 4, *(3,) * n))
        self.offset = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        transposed, convolved = getattr(F, f"conv_transpose{self.n}d"), getattr(F, f"conv{self.n}d")
        x = F.relu(transposed(x, self.up, self.offset, 2, 1))
        return convolved(F.interpolate(x, scale_factor=2), self.kernel, padding=1)


@axes
def test_functions_are_converted_and_come_back(n, tmp_path):
    torch.manual_seed(1)
    model = Functional(n).double()
    x, other = (torch.randn(2, 3, *size, dtype=torch.float64) for size in SIZES[n])
    new = pixelize.convert(model, example_inputs=x)
    assert {row.name for row in pixelize.report(new).converted} == {"up_conv_transpose", "kernel_conv"}
    assert_same(model, new, other)
    new.load_state_dict(model.state_dict(), strict=False)
    loaded = pixelize.load(pixelize.save(new, tmp_path / "saved"), into=Functional(n).double())
    assert_same(model, loaded, other)
    back = pixelize.revert(new)
    assert type(back) is Functional
    assert_same(model, back, x)


@axes
def test_seen_without_example_inputs(n):
    torch.manual_seed(2)
    conv = kind("Conv", n)(3, 4, 3, padding=1)
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReLU(), conv).double()
    new = pixelize.convert(model)
    assert [row.name for row in pixelize.report(new).converted] == ["2"]
    for size in SIZES[n]:
        assert_same(model, new, torch.randn(1, 3, *size, dtype=torch.float64))


@axes
def test_a_resize_to_a_given_size_is_looked_at_twice(n):
    class To(nn.Module):
        def __init__(self, fixed):
            super().__init__()
            self.fixed, self.conv = fixed, kind("Conv", n)(2, 2, 3, padding=1)

        def forward(self, x):
            size = self.fixed or [2 * d for d in x.shape[2:]]
            return self.conv(F.interpolate(x, size))

    x = torch.randn(1, 2, *(4,) * n)
    assert survey(To(None), x).sites and not survey(To([8] * n), x).sites


def test_a_signal_without_a_batch_is_no_picture_of_one_axis():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))

    model = Up().double()
    new = pixelize.convert(model, example_inputs=torch.randn(1, 2, 4, 5, dtype=torch.float64))
    assert_same(model, new, torch.randn(2, 4, 5, dtype=torch.float64))


def test_what_a_named_wrapper_holds_is_the_site():
    class MyConvTranspose1d(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.ConvTranspose1d(2, 3, 4, 2)

        def forward(self, x):
            return self.conv(x)[..., 1:-1]

    found = survey(nn.Sequential(MyConvTranspose1d()), torch.randn(1, 2, 7))
    assert [s.name for s in found.sites] == ["0.conv"] and not found.skipped


class Filtered(nn.Module):
    """Enlarged by a fixed filter, for as many channels as there are; or by one that the input makes."""

    def __init__(self, n, kind):
        super().__init__()
        self.n, self.kind = n, kind
        self.register_buffer("filter", torch.rand(1, 1, *(4,) * n))
        self.scale = nn.Parameter(torch.ones(1))
        self.after = getattr(nn, f"ConvTranspose{n}d")(2, 2, 2, 2)

    def forward(self, x):
        weight = (self.filter / self.filter.sum()).expand(2, -1, *(-1,) * self.n)
        if self.kind == "input":
            weight = weight * x.mean()
        elif self.kind == "parameter":
            weight = weight * self.scale
        up = getattr(torch.nn.functional, f"conv_transpose{self.n}d")
        return self.after(up(x, weight, stride=2, padding=1, groups=2))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "reason"), [("fixed", "a fixed filter"), ("parameter", "at run time"), ("input", "at run time")]
)
def test_a_computed_filter_is_listed_with_what_it_is_computed_from(n, kind, reason):
    model, x = Filtered(n, kind), torch.randn(1, 2, *(5,) * n)
    report = pixelize.inspect(model, x)
    (left,) = report.skipped
    assert reason in left.reason and [site.name for site in report.found] == ["after"]
