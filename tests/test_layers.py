"""The layers against nn.ConvTranspose2d and against the per-pixel oracle, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import output_extent, pixel_deconvolution
from torch import nn

import pixelize
from pixelize import PixelDCL2d, iPixelDCL2d
from pixelize.inheritance.inherit import Design, inherit


@st.composite
def geometries(draw, largest=5, size=5):
    """Constructor arguments of nn.ConvTranspose2d with an input size that they accept."""
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    k, s, d, p, size = pair(1, largest), pair(1, 4), pair(1, 3), pair(0, 3), pair(1, size)
    op = tuple(draw(st.integers(0, max(s[i], d[i]) - 1)) for i in (0, 1))
    assume(all(output_extent(size[i], k[i], s[i], p[i], d[i], op[i]) >= 1 for i in (0, 1)))
    groups = draw(st.sampled_from([1, 1, 2]))
    bias = draw(st.booleans())
    return dict(
        kernel_size=k, stride=s, padding=p, output_padding=op, groups=groups, bias=bias, dilation=d
    ), size  # fmt: skip


@st.composite
def designs(draw, stride, channels, largest=4):
    schedules = ["paired", "sequential", "masked"] if stride == (2, 2) else ["paired", "sequential"]
    schedule = draw(st.sampled_from(schedules if stride[0] * stride[1] <= 6 else ["paired"]))
    sizes = [1, 3, 5] if schedule == "masked" else [1, 2, 3, 4][:largest]
    size = (draw(st.sampled_from(sizes)), draw(st.sampled_from(sizes)))
    if schedule == "masked" and size == (1, 1):
        size = (1, 3)  # a masked 1x1 kernel has no taps
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    return Design(size, draw(st.sampled_from(divisors)), schedule)


many = settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
some = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@many
@given(st.data())
def test_inherited_ipixeldcl_is_the_transposed_convolution(data):
    arguments, size = data.draw(geometries())
    original = nn.ConvTranspose2d(4, 6, dtype=torch.float64, **arguments)
    layer, error, _ = inherit(original, "ipixeldcl", data.draw(designs(original.stride, 6)), "inherit")
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected, got = original(x), layer(x)
    assert got.shape == expected.shape and error == 0.0
    assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.slow
@settings(some, max_examples=500)
@given(st.data())
def test_output_size_settles_the_size(data):
    arguments, size = data.draw(geometries())
    arguments["output_padding"] = 0
    original = nn.ConvTranspose2d(4, 4, dtype=torch.float64, **arguments)
    s, k, p, d = original.stride, original.kernel_size, original.padding, original.dilation
    low = [output_extent(size[i], k[i], s[i], p[i], d[i], 0) for i in (0, 1)]
    wanted = [low[i] + data.draw(st.integers(0, max(s[i], d[i]) - 1)) for i in (0, 1)]
    assume(min(wanted) >= 1 and min(low) >= 1)
    assume(all(wanted[i] - low[i] < s[i] for i in (0, 1)))  # what torch itself accepts as an output_size
    x = torch.randn(1, 4, *size, dtype=torch.float64)
    expected = original(x, output_size=wanted)
    for name in ("ipixeldcl", "pixeldcl"):
        layer, _, _ = inherit(original, name, Design((2, 2)), "zero")
        got = layer(x, output_size=wanted)
        assert got.shape == expected.shape
        a, b = layer.anchor
        gap = (got - expected)[..., a :: s[0], b :: s[1]] if name == "pixeldcl" else got - expected
        assert gap.numel() == 0 or gap.abs().max() <= 1e-12


@pytest.mark.slow
@settings(some, max_examples=120)
@given(st.data())
@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_every_schedule_against_the_per_pixel_oracle(kind, data):
    arguments, size = data.draw(geometries(largest=4, size=3))
    design = data.draw(designs(arguments["stride"], 4))
    layer = kind(
        2, 4, **arguments, dtype=torch.float64, dependency_kernel_size=design.kernel_size,
        dependency_groups=design.groups, schedule=design.schedule,
    )  # fmt: skip
    for kernel in layer.dependency_kernels:
        nn.init.normal_(kernel)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    weight = layer.weight.detach().numpy()
    if kind is PixelDCL2d:
        full = np.zeros((*weight.shape[:2], *layer.kernel_size))
        full[np.ix_(range(2), range(weight.shape[1]), *layer.first_taps())] = weight
        weight = full
    gate = (
        data.draw(
            st.sampled_from([1.0, 0.25, 0.0])  # exact in float32
        )
        if kind is iPixelDCL2d
        else 0.0
    )
    if kind is iPixelDCL2d:
        pixelize.set_input_gate(layer, gate)
    expected = pixel_deconvolution(
        x[0].numpy(), weight, [k.detach().numpy() for k in layer.dependency_kernels],
        None if layer.bias is None else layer.bias.detach().numpy(), layer.stride, layer.padding,
        layer.dilation,
        layer.output_padding, layer.groups, design.groups, design.kernel_size, design.schedule, layer.anchor,
        lambda phase: 1.0 if phase == layer.anchor else gate, layer.kernel_size,
    )  # fmt: skip
    got = layer(x)[0].detach().numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-12 * max(np.abs(expected).max(), 1.0)


@some
@given(st.data())
def test_inherited_pixeldcl_keeps_the_first_phase(data):
    arguments, size = data.draw(geometries())
    original = nn.ConvTranspose2d(4, 4, dtype=torch.float64, **arguments)
    layer, error, _ = inherit(
        original, "pixeldcl", data.draw(designs(original.stride, 4, largest=2)), "inherit"
    )
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected, got = original(x), layer(x)
    (a, b), s = layer.anchor, original.stride
    gap = (got - expected)[..., a :: s[0], b :: s[1]]
    assert got.shape == expected.shape and 0 <= error <= 1 + 1e-9
    assert gap.numel() == 0 or gap.abs().max() <= 1e-12


@pytest.mark.parametrize("schedule", ["paired", "sequential", "masked"])
@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=4, stride=2, padding=1),
        dict(kernel_size=3, stride=2, padding=1, output_padding=1, groups=2),
        dict(kernel_size=(2, 3), stride=2, dilation=(3, 1), padding=(1, 2), dependency_groups=2),
    ],
)
def test_gradients(kind, schedule, arguments):
    layer = kind(2, 2, **arguments, schedule=schedule, dtype=torch.float64)
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    parameters = tuple(p.detach().requires_grad_() for p in layer.parameters())
    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_double_backward(kind):
    layer = kind(1, 1, 2, 2, dtype=torch.float64)
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_stride_3_and_4_take_two_dependent_steps(kind):
    for stride in (3, 4, (4, 2), (1, 3)):
        layer = kind(2, 2, 6, stride, 1, dtype=torch.float64)
        assert len(layer.plan.stages) <= 2
        x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
        assert layer(x).shape == nn.ConvTranspose2d(2, 2, 6, stride, 1, dtype=torch.float64)(x).shape


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_memory_format_dtype_and_unbatched_input(kind):
    layer = kind(4, 6, 4, 2, 1)
    x = torch.randn(2, 4, 5, 7)
    expected = layer(x)
    last = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(layer(x[0]), expected[0])
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    assert kind(4, 6, 4, 2, 1, device="meta")(x.to("meta")).shape == expected.shape


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_what_the_two_functions_return_is_what_the_modules_return(kind):
    layer = kind(4, 6, 4, 2, 1, schedule="masked", dependency_groups=3)
    x = torch.randn(1, 4, 3, 3)
    shared = dict(
        stride=2, padding=1, dependency_groups=3, dependency_kernel_size=3, schedule="masked",
    )  # fmt: skip
    if kind is iPixelDCL2d:
        got = pixelize.ipixel_dcl2d(x, layer.weight, list(layer.dependency_kernels), layer.bias, **shared)
    else:
        got = pixelize.pixel_dcl2d(
            x, layer.weight, list(layer.dependency_kernels), layer.bias, kernel_size=4, **shared
        )
    torch.testing.assert_close(got, layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_tools_see_one_node_and_any_size(kind):
    layer = kind(2, 2, 4, 2, 1)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    x = torch.randn(3, 2, 5, 6)
    torch.testing.assert_close(traced(x), layer(x))
    auto = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        layer, (torch.randn(2, 2, 4, 4),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_new_dependency_kernels_are_ordinary_zeros(dtype):
    layer, _, _ = inherit(nn.ConvTranspose2d(4, 2, 4, 2, 1, dtype=dtype), "ipixeldcl", Design(), "inherit")
    for kernel in layer.dependency_kernels:
        assert kernel.dtype == dtype and kernel.is_contiguous() and not kernel.any()
        with torch.no_grad():
            kernel.add_(1)
    copied = copy.deepcopy(layer)
    assert all(bool((k == 1).all()) for k in copied.dependency_kernels)


def test_constructor_refuses_what_cannot_be():
    with pytest.raises(pixelize.ArgumentError, match="choose one of 'paired'"):
        iPixelDCL2d(2, 2, 4, 2, schedule="other")
    with pytest.raises(pixelize.ArgumentError, match="stride 2"):
        iPixelDCL2d(2, 2, 4, 3, schedule="masked")
    with pytest.raises(pixelize.ArgumentError, match="3 or more"):
        PixelDCL2d(2, 2, 4, 2, schedule="masked", dependency_kernel_size=1)
    with pytest.raises(pixelize.ArgumentError, match="does not divide the 4 output"):
        PixelDCL2d(2, 4, 4, 2, dependency_groups=3)
    with pytest.raises(pixelize.ArgumentError, match="at least 1"):
        PixelDCL2d(2, 4, 4, 2, dependency_kernel_size=0)
