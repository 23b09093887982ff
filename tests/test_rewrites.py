"""Finding up-samplers and stating them as transposed convolutions: exact in float64, whatever stands around
them."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pixelize.rewrites import become, canonical, outline, replacement, state_of, survey
from pixelize.rewrites.applying.passes import plain_layer
from pixelize.rewrites.graph.resize_factor import axis_factor
from pixelize.rewrites.idioms.merged_taps import left_inverse, merge_taps, split_taps

TOLERANCE = 1e-12
SLOW = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def swapped(
    model: nn.Module, inputs, kinds=("conv_transpose", "resize_conv", "pixel_shuffle")
) -> tuple[nn.Module, list]:
    """A copy of ``model`` in which every site is one plain transposed convolution, and the sites."""
    sites = [s for s in survey(model, inputs).sites if s.kind in kinds]
    model = copy.deepcopy(model)
    outline(model, sites)
    for site in sites:
        module = model.get_submodule(site.name)
        form = canonical(site, module)
        assert form.geometry == site.geometry
        become(module, state_of(replacement(site, module, plain_layer(form, module))))
    return model, sites


def assert_same(a: nn.Module, b: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        torch.manual_seed(1)
        x = a(*inputs)
        torch.manual_seed(1)
        y = b(*inputs)
    torch.testing.assert_close(y, x, rtol=TOLERANCE, atol=TOLERANCE)


class Resized(nn.Module):
    """A nearest resize, perhaps a skip, perhaps padding and an activation, a convolution."""

    def __init__(
        self, kernel=3, padding=1, dilation=1, factor=2, skip=2, pad=None, mode="zeros", groups=1, bias=True
    ):
        super().__init__()
        self.factor, self.pad = factor, pad or nn.Identity()
        self.conv = nn.Conv2d(
            4 + skip,
            4,
            kernel,
            padding=padding,
            dilation=dilation,
            padding_mode=mode,
            groups=groups,
            bias=bias,
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.factor is None:
            u = F.interpolate(x, size=skip.shape[-2:])
        else:
            u = F.interpolate(x, scale_factor=self.factor)
        if skip.shape[1]:
            u = torch.cat([skip[:, :1], F.leaky_relu(u), skip[:, 1:]], 1)
        return self.conv(self.pad(u))


def pair(factor) -> tuple[int, int]:
    return factor if isinstance(factor, tuple) else (factor, factor)


@SLOW
@given(
    st.integers(2, 5),
    st.integers(0, 4),
    st.integers(1, 2),
    st.sampled_from([2, 3, 4, (2, 3), (1, 2)]),
    st.sampled_from([0, 2]),
    st.booleans(),
)
def test_a_resize_and_a_convolution_are_one_transposed_convolution(
    kernel, padding, dilation, factor, skip, bias
):
    model = Resized(kernel, padding, dilation, factor, skip, bias=bias).double()
    s = pair(factor)
    x, extra = torch.randn(2, 4, 12, 10).double(), torch.randn(2, skip, 12 * s[0], 10 * s[1]).double()
    converted, sites = swapped(model, (x, extra))
    possible = padding <= dilation * (kernel - 1) and all(dilation <= max(f, 1) for f in s)
    assert len(sites) == possible
    if possible:
        g = sites[0].geometry
        assert g.kernel_size == tuple(dilation * (kernel - 1) + f for f in s) and g.stride == s
    assert_same(model, converted, x, extra)
    assert_same(model, converted, x[:1, :, :10, :9], extra[:1, :, : 10 * s[0], : 9 * s[1]])


@pytest.mark.parametrize(
    "pad, kernel, mode",
    [
        (nn.ReflectionPad2d(1), 3, "zeros"),
        (nn.ReplicationPad2d(2), 5, "zeros"),
        (nn.ReplicationPad2d(3), 3, "zeros"),
        (nn.ZeroPad2d(1), 3, "zeros"),
        (nn.ZeroPad2d((1, 1, 2, 2)), 5, "zeros"),
        (None, 3, "reflect"),
        (None, 3, "replicate"),
    ],
)
@pytest.mark.parametrize("factor", [2, 3])
def test_padding_between_resize_and_convolution_is_seen_through(pad, kernel, mode, factor):
    model = Resized(kernel, 0 if pad else 1, factor=factor, skip=0, pad=pad, mode=mode).double()
    x, nothing = torch.randn(2, 4, 5, 4).double(), torch.zeros(2, 0, 1, 1).double()
    converted, sites = swapped(model, (x, nothing))
    assert [s.kind for s in sites] == ["resize_conv"]
    assert_same(model, converted, x, nothing)
    assert_same(model, converted, x[:1, :, 1:], nothing[:1])


@pytest.mark.parametrize("pad", [nn.ReflectionPad2d(2), nn.ZeroPad2d((0, 1, 0, 1)), nn.CircularPad2d(1)])
def test_padding_that_breaks_the_blocks_is_not(pad):
    model = Resized(3, 0, skip=0, pad=pad).double()
    found = survey(model, (torch.randn(1, 4, 5, 4).double(), torch.zeros(1, 0, 1, 1).double()))
    assert not found.sites
    assert "goes to" in found.skipped[0].reason


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("size", [(11, 8), (12, 7), (11, 7), (12, 8), (9, 5), (6, 4)])
@pytest.mark.parametrize("pad", [None, nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1)])
def test_a_resize_to_an_odd_size_stays_exact(pad, mode, size):
    """9x5 is no multiple at all: the module falls back to the convolution that its weight still is."""
    skip = 2 if pad is None else 0
    model = Resized(factor=None, mode=mode, pad=pad, skip=skip).double()
    x = torch.randn(2, 4, 6, 4).double()
    converted, sites = swapped(model, (x, torch.randn(2, skip, 12, 8).double()))
    alike = pad is None or type(pad).__name__.lower()[:4] == mode[:4]  # or else padded in two ways
    assert len(sites) == 1 or not alike
    assert_same(model, converted, x, torch.randn(2, skip, *size).double())


def test_an_odd_size_is_seen_at_capture_too():
    class Level(nn.Module):
        """One level of a U-Net: an odd picture is halved, rounding up, and resized to what it was."""

        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(7, 3, 3, padding=1)

        def forward(self, x):
            return self.up(torch.cat([F.interpolate(self.down(x), size=x.shape[-2:]), x], 1))

    model = Level().double()
    converted, sites = swapped(model, torch.randn(2, 3, 11, 7).double())
    assert [s.geometry.stride for s in sites] == [(2, 2)]
    for size in ((11, 7), (10, 7), (8, 6), (9, 9)):
        assert_same(model, converted, torch.randn(1, 3, *size).double())


class Smooth(nn.Module):
    """A bilinear resize, a norm, perhaps a skip and padding, a convolution."""

    def __init__(self, factor=2, kernel=3, padding=1, skip=2, pad=None, mode="zeros", dilation=1, groups=1):
        super().__init__()
        self.factor, self.norm, self.pad = factor, nn.BatchNorm2d(4), pad or nn.Identity()
        self.conv = nn.Conv2d(
            4 + skip, 4, kernel, padding=padding, padding_mode=mode, dilation=dilation, groups=groups
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.factor is None:
            u = F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
        else:
            u = F.interpolate(x, scale_factor=self.factor, mode="bilinear")
        return self.conv(self.pad(torch.cat([skip, self.norm(u)], 1)))


@pytest.mark.parametrize("factor", [2, 3, 4, (2, 3), (1, 2)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel": 5, "padding": 2},
        {"kernel": 4, "padding": 0},
        {"mode": "reflect"},
        {"mode": "replicate", "kernel": 5, "padding": 2},
        {"padding": 0, "pad": nn.ReflectionPad2d(2)},
        {"padding": 0, "pad": nn.ZeroPad2d((1, 1, 2, 2))},
        {"skip": 0, "groups": 2},
    ],
)
def test_a_bilinear_resize_and_a_convolution_are_one_too(factor, settings):
    """The border included, whatever the convolution sees beyond it; down to pictures as small as it takes."""
    model = Smooth(factor, **settings).double()
    s, skip = pair(factor), settings.get("skip", 2)
    x, extra = torch.randn(2, 4, 6, 5).double(), torch.randn(2, skip, 6 * s[0], 5 * s[1]).double()
    converted, sites = swapped(model, (x, extra))
    assert [site.kind for site in sites] == ["resize_conv"] and sites[0].geometry.stride == s
    assert_same(model, converted, x, extra)
    assert_same(model, converted, x[:1, :, :4, :4], extra[:1, :, : 4 * s[0], : 4 * s[1]])
    for m in (model, converted):
        m.train()
    assert_same(copy.deepcopy(model), converted, x, extra)


def test_a_bilinear_resize_by_no_integer_falls_back_to_the_convolution():
    model = Smooth(factor=None).double()
    x = torch.randn(2, 4, 6, 4).double()
    converted, sites = swapped(model, (x, torch.randn(2, 2, 12, 8).double()))
    assert len(sites) == 1
    for size in ((12, 8), (11, 8), (9, 7), (18, 12)):  # the last is a resize by three
        assert_same(model, converted, x, torch.randn(2, 2, *size).double())


def test_of_a_bilinear_and_a_nearest_resize_side_by_side_the_nearest_one_is_taken():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, a, b):
            smooth = F.interpolate(a, scale_factor=2, mode="bilinear")
            return self.conv(torch.cat([smooth, F.interpolate(b, scale_factor=2)], 1))

    model, inputs = Both().double(), tuple(torch.randn(1, 3, 5, 4).double() for _ in range(2))
    converted, sites = swapped(model, inputs)
    assert sites[0].options["ranges"] == [[3, 6]]
    assert_same(model, converted, *inputs)


@pytest.mark.parametrize(
    "between, reason",
    [
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners"),
        (nn.Upsample(scale_factor=1.5, mode="bilinear"), "not by an integer factor"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "bicubic"),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU()), "goes to relu"),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.PReLU()), "goes to "),
    ],
)
def test_smooth_resizes_that_are_no_transposed_convolution_are_reported(between, reason):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 4, 3, padding=1))
    found = survey(model, torch.randn(1, 3, 8, 8))
    assert not [s for s in found.sites if s.kind == "resize_conv"]
    assert not found.skipped or reason in found.skipped[0].reason


def test_a_factor_that_changes_with_the_size_is_reported():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(F.interpolate(x, size=(16, 16)))

    found = survey(Fixed(), torch.randn(1, 3, 8, 8))
    assert not found.sites
    assert [(s.name, s.reason) for s in found.skipped] == [
        ("conv", "the resize has another factor at another input size")
    ]


def test_so_is_one_in_a_forward_that_looks_at_values():
    class Looks(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.conv, self.size = nn.Conv2d(3, 4, 3, padding=1), size

        def forward(self, x):
            size = self.size or [2 * d for d in x.shape[-2:]]
            return self.conv(F.interpolate(x, size=size) if x.abs().sum() > 0 else x)

    x = torch.randn(1, 3, 8, 8)
    assert [s.name for s in survey(Looks(None), x).sites] == ["conv"]
    found = survey(Looks((16, 16)), x)
    assert not found.sites and "another input size" in found.skipped[0].reason


def test_several_factors_share_their_greatest_common_one():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(9, 4, 3, padding=1)

        def forward(self, a, b, c):
            return self.conv(
                torch.cat([F.interpolate(a, scale_factor=4), b, F.interpolate(c, scale_factor=2)], 1)
            )

    model = Pyramid().double()
    inputs = [torch.randn(2, 3, s, s).double() for s in (4, 16, 8)]
    converted, sites = swapped(model, tuple(inputs))
    assert sites[0].options["ranges"] == [[0, 3], [6, 9]] and sites[0].options["factor"] == [2, 2]
    assert_same(model, converted, *inputs)


def test_what_mixes_pixels_in_between_ends_it():
    for between in (nn.AvgPool2d(3, 1, 1), nn.Dropout(0.5), nn.Softmax(3), nn.LayerNorm(8)):
        model = nn.Sequential(nn.Upsample(scale_factor=2), between, nn.Conv2d(3, 4, 3, padding=1))
        found = survey(model, torch.randn(1, 3, 4, 4))
        assert [s.kind for s in found.sites] == ["resize"], between


def test_what_keeps_blocks_does_not():
    for between in (
        nn.BatchNorm2d(3),
        nn.PReLU(3),
        nn.GroupNorm(1, 3),
        nn.Dropout2d(0.5),
        nn.Dropout(0.0),
        nn.InstanceNorm2d(3),
    ):
        model = nn.Sequential(
            nn.Upsample(scale_factor=2), between, nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)
        ).double()
        x = torch.randn(2, 3, 4, 5).double()
        for training in (True, False):
            converted, sites = swapped(model.train(training), x)
            assert [s.kind for s in sites] == ["resize_conv"], between
            assert_same(copy.deepcopy(model), converted, x)


def test_one_convolution_in_two_places_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(F.interpolate(self.conv(x), scale_factor=2))

    found = survey(Twice(), torch.randn(1, 3, 4, 4))
    assert not found.sites
    assert "several places" in found.skipped[0].reason


def test_a_1x1_convolution_of_a_resize_counts_as_a_bare_resize():
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 1)).double()
    x = torch.randn(1, 3, 4, 4).double()
    assert [(s.kind, s.name) for s in survey(model, x).sites] == [("resize", "1")]
    converted, _ = swapped(model, x, kinds=("resize",))
    assert_same(model, converted, x)


@pytest.mark.parametrize(
    "resize",
    [
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=(2, 3), mode="nearest-exact"),
        nn.UpsamplingNearest2d(scale_factor=3),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=3, mode="bilinear"),
        nn.Upsample(scale_factor=(2, 4), mode="bilinear"),
    ],
)
def test_a_bare_resize_is_a_depthwise_transposed_convolution(resize):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), resize, nn.Tanh()).double()
    x = torch.randn(2, 3, 7, 8).double()
    converted, sites = swapped(model, x, kinds=("resize",))
    assert [(s.kind, s.geometry.groups) for s in sites] == [("resize", 4)]
    assert_same(model, converted, torch.randn(1, 3, 9, 6).double())


@pytest.mark.parametrize(
    "resize",
    [
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.Upsample(scale_factor=1.5),
        nn.Upsample(size=(8, 8)),
    ],
)
def test_resizes_that_cannot_be_converted_are_reported_with_a_reason(resize):
    found = survey(nn.Sequential(nn.Conv2d(3, 4, 3), resize), torch.randn(1, 3, 7, 7))
    assert not found.sites
    assert found.skipped[0].name == "1" and found.skipped[0].reason


def test_a_resize_that_makes_smaller_is_no_site():
    model = nn.Sequential(nn.Upsample(size=(4, 4)), nn.Conv2d(3, 4, 3))
    found = survey(model, torch.randn(1, 3, 8, 8))
    assert not found.sites and not found.skipped


class Shuffled(nn.Module):
    """A convolution and a shuffle, as torch has it or as a permutation with the phases before the
    channels."""

    def __init__(self, factor=2, kernel=3, padding=1, groups=1, permuted=False, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(4, 4 * factor**2, kernel, padding=padding, groups=groups, bias=bias)
        self.factor, self.permuted = factor, permuted

    def forward(self, x: Tensor) -> Tensor:
        y, r = F.leaky_relu(self.conv(x)), self.factor
        if not self.permuted:
            return F.pixel_shuffle(y, r)
        n, c, h, w = y.shape
        return (
            y.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // r**2, h * r, w * r)
        )


@SLOW
@given(
    st.integers(2, 3),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_a_convolution_and_a_shuffle_are_one_transposed_convolution(
    factor, kernel, padding, groups, permuted, bias
):
    model = Shuffled(factor, kernel, padding, groups, permuted, bias).double()
    x = torch.randn(2, 4, 6, 5).double()
    converted, sites = swapped(model, x)
    assert len(sites) == (padding <= kernel - 1 and not (permuted and groups > 1))
    assert_same(model, converted, x)
    assert_same(model, converted, torch.randn(1, 4, 5, 9).double())


def test_a_shuffled_convolution_that_somebody_else_reads_is_left_alone():
    class Read(Shuffled):
        def forward(self, x):
            y = self.conv(x)
            return F.pixel_shuffle(y, 2), y.mean()

    found = survey(Read(), torch.randn(1, 4, 6, 5))
    assert not found.sites
    assert "mean" in found.skipped[0].reason


class Functional(nn.Module):
    """Two functional transposed convolutions, one of them of a parameter that lies deeper."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.kernel = nn.Parameter(torch.randn(3, 4, 4, 4))
        self.kernel = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.offset = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv_transpose2d(x, self.inner.kernel, self.offset, 2, 1))
        return F.conv_transpose2d(x, self.kernel, stride=(2, 2), padding=1, output_padding=1)

    def describe(self) -> str:
        return "still here"


def test_functional_transposed_convolutions_become_modules_and_back():
    model = Functional().double()
    x = torch.randn(2, 3, 5, 4).double()
    before, state = model(x), copy.deepcopy(model.state_dict())
    found = survey(model, x, functional=True)
    assert [s.name for s in found.sites] == ["inner_kernel_conv_transpose", "kernel_conv_transpose"]
    undo = outline(model, found.sites)
    assert (
        isinstance(model, Functional)
        and type(model).__name__ == "Functional"
        and model.describe() == "still here"
    )
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert [s.type for s in survey(model, x).sites] == ["ConvTranspose2d"] * 2
    converted, sites = swapped(model, x)
    assert len(sites) == 2
    assert_same(model, converted, torch.randn(1, 3, 7, 9).double())
    copy.deepcopy(model)(x).sum().backward()
    undo()
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_without_asking_functional_sites_are_reported_not_returned():
    found = survey(Functional(), torch.randn(1, 3, 5, 4))
    assert not found.sites and len(found.skipped) == 2


def test_modulated_weights_are_reported():
    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))
            self.style = nn.Linear(4, 3)

        def forward(self, x, z):
            return F.conv_transpose2d(x, self.weight * self.style(z)[0, :, None, None, None], stride=2)

    found = survey(Modulated(), (torch.randn(1, 3, 4, 4), torch.randn(1, 4)), functional=True)
    assert not found.sites
    assert "run time" in found.skipped[0].reason


def test_a_forward_that_differs_in_training_stays_what_it_is():
    class Differs(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 2, 2))

        def forward(self, x):
            y = F.conv_transpose2d(x, self.weight, stride=2)
            return y * 2 if self.training else y

    model, x = Differs(), torch.randn(1, 3, 4, 4)
    found = survey(model, x, functional=True)
    before = [model.train(mode)(x) for mode in (True, False)]
    outline(model, found.sites)
    converted, sites = swapped(model, x)
    assert [s.name for s in sites] == ["weight_conv_transpose"]
    for mode, expected in zip((True, False), before, strict=True):
        torch.testing.assert_close(converted.train(mode)(x), expected)


def test_an_aten_graph_is_taken_as_it_is():
    model = (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2))
        .double()
        .eval()
    )
    x = torch.randn(1, 3, 5, 5).double()
    graph = torch.export.export(model, (x,)).module()
    before = graph(x)
    found = survey(graph, functional=True)
    assert found.capture == "graph"
    outline(graph, found.sites)
    converted, sites = swapped(graph, x)
    assert len(sites) == 2
    torch.testing.assert_close(converted(x), before, rtol=TOLERANCE, atol=TOLERANCE)


class Opaque(nn.Module):
    """Control flow on values: no graph without running it."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 4, 2, 1)
        self.conv = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 1e9:
            x = -x
        return self.conv(F.interpolate(self.up(x), scale_factor=2))


def test_a_look_at_the_shapes_leaves_a_model_as_it_was():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.tied = self.conv
            self.plain = torch.ones(4, 1, 1)
            self.cache, self.seen, self.scheduler = {}, [], SimpleNamespace(scale=torch.ones(1))

        def forward(self, x):
            self.scheduler.scale = self.scheduler.scale.to(x.device)
            y = self.tied(self.conv(x)[:, :3]) * self.plain
            self.cache[y.shape], self.last = y, y
            self.seen.append(y)
            return F.dropout(F.interpolate(y, scale_factor=2), 0.5, self.training)

    model = nn.Sequential(Keeps(), nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)))
    attributes = {n: set(m.__dict__) for n, m in model.named_modules()}
    weights = {n: (id(p), p.clone()) for n, p in model.named_parameters(remove_duplicate=False)}
    x = torch.randn(1, 3, 6, 6)
    found = survey(model, x)
    assert found.capture == "record" and not found.sites  # in training the dropout ends the blocks
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == attributes
    assert not model[0].cache and not model[0].seen and model[0].plain.device.type == "cpu"
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert id(parameter) == weights[name][0] and torch.equal(parameter, weights[name][1])
    assert model[0].scheduler.scale.device.type == "cpu"
    assert model[1].weight.device.type == "cpu" and model(x).isfinite().all()


class MixesInATensor(nn.Module):
    """A tensor that the model does not hold: it cannot be run for its shapes alone."""

    values = torch.randn(1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.values.expand_as(x)], 1)


def test_the_ladder_of_captures():
    x = torch.randn(1, 3, 5, 5)
    plain = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3, padding=1)
    )
    assert survey(plain, x).capture == "record"
    assert survey(nn.Sequential(plain, MixesInATensor()), x).capture == "record"
    assert survey(fx.symbolic_trace(plain), x).capture == "graph"
    assert survey(plain).capture == "symbolic"
    assert survey(Opaque(), x).capture == "record"
    assert survey(Opaque()).capture == "modules"
    for model, inputs in ((plain, x), (fx.symbolic_trace(plain), x), (plain, None), (Opaque(), x)):
        assert [s.kind for s in survey(model, inputs).sites] == ["conv_transpose", "resize_conv"], inputs


def test_the_parts_that_can_be_traced_are_where_the_whole_cannot():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1))
            self.opaque = Opaque()

        def forward(self, x):
            return self.part(x) if x.sum() > 0 else x

    found = survey(Whole())
    assert found.capture == "symbolic"
    assert {(s.name, s.kind) for s in found.sites} == {
        ("part.1", "resize_conv"),
        ("opaque.up", "conv_transpose"),
    }


def test_what_cannot_be_seen_is_said():
    class Broken(Opaque):
        def forward(self, x):
            raise RuntimeError("not today")

    found = survey(Broken(), torch.randn(1, 3, 5, 5))
    assert [s.name for s in found.sites] == ["up"]
    assert found.capture == "modules"
    assert any("not today" in note for note in found.notes) and "no computation" in found.notes[-1]


def test_a_survey_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 2, 3, padding=1),
    ).train()
    model[2].eval()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    first = survey(model, torch.randn(1, 3, 8, 8))
    random = torch.get_rng_state()
    second = survey(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(random, torch.get_rng_state())
    assert first.sites == second.sites
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_survey_leaves_counters_and_lazy_modules_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)
            self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)

        def forward(self, x):
            self.calls += 1
            self.last = x
            return self.up(x) if x.sum().item() < 1e9 else x

    model = Counting()
    assert survey(model, torch.randn(1, 3, 4, 4)).capture == "record"
    assert model.calls == 0 and model.last is None
    assert not nn.modules.module._global_buffer_registration_hooks
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ConvTranspose2d(4, 3, 4, 2, 1))
    found = survey(lazy, torch.randn(1, 3, 8, 8))
    assert "lazy" in found.notes[0] and [s.name for s in found.sites] == ["1"]
    assert isinstance(lazy[0], nn.LazyConv2d)


def test_a_graph_that_came_from_onnx_is_recorded():
    """Its modules are another library's: what they do shows only when they run."""
    onnx2torch = pytest.importorskip("onnx2torch")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.PixelShuffle(2),
    ).eval()
    path = io.BytesIO()
    x = torch.randn(1, 3, 8, 8)
    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
    path.seek(0)
    graph = onnx2torch.convert(pytest.importorskip("onnx").load(path)).double()
    found = survey(graph, x.double())
    assert isinstance(graph, fx.GraphModule)
    assert (found.capture, [s.kind for s in found.sites]) == ("record", ["resize_conv"])
    converted, _ = swapped(graph, x.double())
    assert_same(graph, converted, x.double())


def test_a_converted_model_can_be_traced_symbolically():
    model = nn.Sequential(
        nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.ReLU()
    ).double()
    converted, sites = swapped(model, torch.randn(1, 3, 6, 5).double())
    assert len(sites) == 1
    assert_same(model, fx.symbolic_trace(converted), torch.randn(2, 3, 4, 7).double())


@SLOW
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2]))
def test_splitting_the_merged_taps_gives_the_convolution_back(kernel, dilation, factor, groups):
    weight = torch.randn(4, 3, kernel, kernel).double()
    merged = merge_taps(weight, (dilation, dilation), (factor, factor), groups)
    again = split_taps(
        merged, (kernel,) * 2, groups, left_inverse((kernel,) * 2, (dilation,) * 2, (factor,) * 2)
    )
    torch.testing.assert_close(again, weight, rtol=1e-10, atol=1e-10)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 60), st.booleans())
def test_the_factor_of_a_resize_is_what_it_reads(before, after, exact):
    mode = "nearest-exact" if exact else "nearest"
    read = F.interpolate(torch.arange(before).double()[None, None], size=after, mode=mode)[0, 0].long()
    factor = axis_factor(before, after, None, exact)
    if factor is not None:
        assert torch.equal(read, torch.arange(after) // factor)
    elif before > 1 and -(-after // (s := -(-after // before))) == before:
        assert not torch.equal(read, torch.arange(after) // s)


class Program(nn.Module):
    """A random program of resizes, convolutions, norms, activations, dropout and concatenations."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList()
        channels, stack = 4, []
        for step in steps:
            layer: nn.Module = nn.Identity()
            if step.startswith("conv"):
                inside = channels + (stack.pop() if stack and step == "conv3" else 0)
                k = int(step[4])
                layer, channels = nn.Conv2d(inside, 4, k, padding=k // 2), 4
            elif step == "norm":
                layer = nn.BatchNorm2d(channels)
            elif step == "drop":
                layer = nn.Dropout(0.3)
            elif step == "reflect":
                layer = nn.ReflectionPad2d(1)
            elif step == "deconv":
                layer, channels = nn.ConvTranspose2d(channels, 4, 3, 2, 1, 1), 4
            elif step == "keep":
                stack.append(channels)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for step, layer in zip(self.steps, self.layers, strict=True):
            if step == "up":
                x = F.interpolate(x, scale_factor=2)
            elif step == "keep":
                kept.append(x)
            elif step == "conv3" and kept:
                skip = kept.pop()
                x = layer(torch.cat([x, F.interpolate(skip, size=x.shape[-2:])], 1))
            elif step == "act":
                x = F.silu(x)
            elif step == "gate":
                x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
            elif step == "add":
                x = x + F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-2:])
            else:
                x = layer(x)
        return x


STEPS = [
    "up",
    "up",
    "conv3",
    "conv3",
    "conv5",
    "conv1",
    "norm",
    "act",
    "drop",
    "gate",
    "keep",
    "add",
    "reflect",
    "deconv",
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    st.lists(st.sampled_from(STEPS), min_size=3, max_size=9).filter(
        lambda s: s.count("up") + s.count("deconv") < 4
    )
)
def test_converting_changes_nothing_in_random_programs(steps):
    model = Program(steps).double()
    x = torch.randn(2, 4, 6, 8).double()
    for training in (False, True):
        converted, _ = swapped(
            model.train(training), x, kinds=("conv_transpose", "resize_conv", "pixel_shuffle", "resize")
        )
        assert_same(copy.deepcopy(model), converted, x)
        assert_same(copy.deepcopy(model), converted, torch.randn(1, 4, 8, 10).double())
