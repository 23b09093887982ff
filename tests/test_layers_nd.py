"""Pixel deconvolutions and pixel convolutions in one, two and three dimensions: against torch's layers,
against the per-pixel oracle, and in everything else that torch's layers can do.

``PIXELIZE_DRAWN=2000 pytest tests/test_layers_nd.py -k drawn`` draws that many configurations of each kind.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import conv_extent, output_extent, pixel_convolution, pixel_deconvolution
from torch import nn

import pixelize

DRAWN = int(os.environ.get("PIXELIZE_DRAWN", "60"))
drawn = settings(max_examples=DRAWN, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
fewer = settings(drawn, max_examples=max(DRAWN // 3, 1))
axes = pytest.mark.parametrize("n", [1, 2, 3])
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def kind(name, n):
    return getattr(nn if name.startswith("Conv") else pixelize, f"{name}{n}d")


@st.composite
def sizes(draw, n, low, high):
    return tuple(draw(st.integers(low, high)) for _ in range(n))


@st.composite
def designs(draw, n, period):
    names = ["paired", "sequential", "near"] + (["masked"] if period == (2, 2) else [])
    name = draw(st.sampled_from(names if np.prod(period) <= 9 else names[:1] + names[2:]))
    size = 3 if name == "masked" else draw(st.one_of(st.sampled_from([1, 2, 3]), sizes(n, 1, 3)))
    groups = draw(st.sampled_from([1, 2, 4]))
    return dict(schedule=name, dependency_kernel_size=size, dependency_groups=groups)


@st.composite
def transposed(draw, n, largest, stride):
    """Arguments of nn.ConvTransposeNd, many of which it refuses, and an input size."""
    k, d, p, size = (draw(sizes(n, *limits)) for limits in ((1, largest), (1, 3), (0, 3), (1, 4)))
    s = draw(sizes(n, 1, stride))
    beyond = draw(st.sampled_from([0] * 9 + [1]))  # what torch refuses
    op = tuple(draw(st.integers(0, max(a, b) - 1 + beyond)) for a, b in zip(s, d, strict=True))
    return dict(kernel_size=k, stride=s, padding=p, output_padding=op, dilation=d,
                groups=draw(st.sampled_from([1, 2])), bias=draw(st.booleans())), size  # fmt: skip


@st.composite
def convolution(draw, n):
    """Arguments of nn.ConvNd, many of which it refuses, and an input size."""
    k, d, p, size = (draw(sizes(n, *limits)) for limits in ((1, 4), (1, 2), (0, 3), (1, 7)))
    c = draw(sizes(n, 1, 3))
    padding = draw(st.sampled_from([p, p, "valid", "same"]))
    return dict(kernel_size=k, stride=(1,) * n if padding == "same" else c, padding=padding, dilation=d,
                padding_mode=draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
                groups=draw(st.sampled_from([1, 2])), bias=draw(st.booleans())), size  # fmt: skip


def outcome(module, x):
    try:
        return module(x)
    except RuntimeError as error:
        return str(error)


def same_as(original, layer, x, *, words):
    """With zero dependencies the layer is ``original``: the same numbers, or the same refusal."""
    layer.load_state_dict(original.state_dict(), strict=False)
    with torch.no_grad():
        for kernel in layer.dependency_kernels:
            kernel.zero_()
        expected, got = outcome(original, x), outcome(layer, x)
    if isinstance(expected, str):
        assert isinstance(got, str) and (got == expected or not words), (expected, got)
        return
    assert isinstance(got, torch.Tensor), got
    assert got.shape == expected.shape
    assert not got.numel() or (got - expected).abs().max() <= 1e-12 * expected.abs().max()


def inputs(data, channels, size):
    """Batched, of any number of samples, or not; the channels may lie side by side."""
    n = len(size)
    x = torch.randn(data.draw(st.sampled_from([0, 1, 2])), channels, *size, dtype=torch.float64)
    how = data.draw(st.sampled_from(["batch", "batch", "last", "one"]))
    if how == "last" and n > 1:
        return x.contiguous(memory_format=LAST[n])
    return x[0] if how == "one" and len(x) else x


@axes
@drawn
@given(st.data())
def test_drawn_transposed_convolutions(n, data):
    arguments, size = data.draw(transposed(n, *{1: (16, 16), 2: (5, 4), 3: (4, 3)}[n]))
    design = data.draw(designs(n, arguments["stride"]))
    original = kind("ConvTranspose", n)(4, 4, dtype=torch.float64, **arguments)
    layer = kind("iPixelDCL", n)(4, 4, dtype=torch.float64, **arguments, **design)
    x = inputs(data, 4, size)
    same_as(original, layer, x, words=True)
    # all phases seeing the input, PixelDCL is the same too; seeing it or not, it refuses the same
    plain = kind("PixelDCL", n)(4, 4, dtype=torch.float64, **arguments, **design)
    plain.set_input_stages(len(plain.plan.stages), original.weight)
    assert sum(w.numel() for w in (plain.weight, *plain.input_kernels)) == original.weight.numel()
    with torch.no_grad():
        first = np.ix_(*plain.first_taps())
        plain.weight.copy_(original.weight[(slice(None), slice(None), *map(torch.as_tensor, first))])
        if original.bias is not None:
            plain.bias.copy_(original.bias)
        for kernel in plain.dependency_kernels:
            kernel.zero_()
        expected, got = outcome(original, x), outcome(plain, x)
    if isinstance(expected, str):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@axes
@drawn
@given(st.data())
def test_drawn_convolutions(n, data):
    arguments, size = data.draw(convolution(n))
    period = data.draw(sizes(n, 1, 3))
    design = data.draw(designs(n, period))
    original = kind("Conv", n)(4, 4, dtype=torch.float64, **arguments)
    layer = kind("iPixelConv", n)(4, 4, dtype=torch.float64, **arguments, **design, period=period)
    same_as(original, layer, inputs(data, 4, size), words=False)


@axes
@fewer
@given(st.data())
def test_drawn_pixel_deconvolutions_against_the_oracle(n, data):
    arguments, size = data.draw(transposed(n, *{1: (9, 8), 2: (4, 3), 3: (3, 2)}[n]))
    size = size if n < 3 else tuple(min(m, 2) for m in size)
    k, s, p, d, op = (
        arguments[a] for a in ("kernel_size", "stride", "padding", "dilation", "output_padding")
    )
    assume(all(m >= 1 for m in map(output_extent, size, k, s, p, d, op)))
    assume(all(e < max(a, b) for e, a, b in zip(op, s, d, strict=True)))
    design = data.draw(designs(n, s))
    name = data.draw(st.sampled_from(["PixelDCL", "iPixelDCL"]))
    layer = kind(name, n)(2, 4, dtype=torch.float64, **arguments, **design)
    gate = data.draw(st.sampled_from([1.0, 0.25, 0.0])) if name == "iPixelDCL" else 0.0
    weight = layer.weight.detach().numpy()
    if name == "PixelDCL":
        full = np.zeros((*weight.shape[:2], *k))
        full[np.ix_(range(2), range(weight.shape[1]), *layer.first_taps())] = weight
        weight = full
    else:
        pixelize.set_input_gate(layer, gate)
    x = torch.randn(2, *size, dtype=torch.float64)
    expected = pixel_deconvolution(
        x.numpy(), weight, [f.detach().numpy() for f in layer.dependency_kernels], bias_of(layer), s, p, d,
        op, layer.groups, layer.dependency_groups, layer.dependency_kernel_size, layer.schedule, layer.anchor,
        lambda phase: 1.0 if phase == layer.anchor else gate, k,
    )  # fmt: skip
    close(layer(x), expected)


@axes
@fewer
@given(st.data())
def test_drawn_pixel_convolutions_against_the_oracle(n, data):
    arguments, size = data.draw(convolution(n))
    size = tuple(min(m, {1: 7, 2: 5, 3: 3}[n]) for m in size)
    arguments.update(padding_mode="zeros", stride=arguments["stride"])
    if isinstance(arguments["padding"], str):
        arguments["padding"] = (0,) * n
    k, c, p, d = (arguments[a] for a in ("kernel_size", "stride", "padding", "dilation"))
    assume(all(m >= 1 for m in map(conv_extent, size, k, c, p, d)))
    period = data.draw(sizes(n, 1, 3 if n < 3 else 2))
    design = data.draw(designs(n, period))
    name = data.draw(st.sampled_from(["PixelConv", "iPixelConv"]))
    layer = kind(name, n)(2, 4, dtype=torch.float64, **arguments, **design, period=period)
    gate = data.draw(st.sampled_from([1.0, 0.25, 0.0])) if name == "iPixelConv" else 0.0
    if name == "iPixelConv":
        pixelize.set_input_gate(layer, gate)
    x = torch.randn(2, *size, dtype=torch.float64)
    expected = pixel_convolution(
        x.numpy(), layer.weight.detach().numpy(), [f.detach().numpy() for f in layer.dependency_kernels],
        bias_of(layer), c, p, d, layer.groups, period, layer.dependency_groups, layer.dependency_kernel_size,
        layer.schedule, gate,
    )  # fmt: skip
    close(layer(x), expected)


def bias_of(layer):
    return None if layer.bias is None else layer.bias.detach().numpy()


def close(got, expected):
    got = got.detach().numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-12 * max(np.abs(expected).max(), 1.0)


# ---- derivatives, wherever torch's layer has them


def gradient_of_weights(layer, x):
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)


def batched_gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    g = torch.linspace(-1, 1, 2 * y.numel(), dtype=y.dtype).reshape(2, *y.shape)
    return torch.autograd.grad(y, (x, *layer.parameters()), g, is_grads_batched=True)


def double_backward(layer, x):
    x = x.clone().requires_grad_()
    wanted = (x, *layer.parameters())
    first = torch.autograd.grad(layer(x).pow(3).sum(), wanted, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)


def ensemble(layer, x):
    weights = {name: torch.stack([p.detach(), -p.detach()]) for name, p in layer.named_parameters()}
    return torch.func.vmap(lambda w: torch.func.functional_call(layer, w, (x,)))(weights)


def cubed(layer):
    return lambda x: layer(x).pow(3).sum()


DERIVATIVES = {
    "gradients of weights, sample by sample": gradient_of_weights,
    "vmap": lambda f, x: torch.func.vmap(f, in_dims=-1, out_dims=-1)(torch.stack([x, -x], -1)),
    "vmap over weights": ensemble,
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.flip(0),)),
    "jvp of a gradient": lambda f, x: torch.func.jvp(torch.func.grad(cubed(f)), (x,), (x.flip(0),)),
    "gradient of a jvp": lambda f, x: torch.func.grad(lambda x: torch.func.jvp(cubed(f), (x,), (x,))[1])(x),
    "linearize": lambda f, x: torch.func.linearize(f, x)[1](x.flip(0)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x[:1]),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x[:1]),
    "jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x[:1], vectorize=True),
    "forward jacobian": lambda f, x: torch.autograd.functional.jacobian(
        f, x[:1], vectorize=True, strategy="forward-mode"
    ),
    "hessian": lambda f, x: torch.autograd.functional.hessian(cubed(f), x[:1], vectorize=True),
    "batched gradients": batched_gradients,
    "double backward": double_backward,
}


@axes
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("design", [{}, {"schedule": "near", "dependency_groups": 2}], ids=str)
@pytest.mark.parametrize("base", ["ConvTranspose", "Conv"])
def test_derivatives_are_those_of_torchs_layer(n, base, design):
    """Those of both layers exist, and with zero dependencies they are the same."""
    arguments = (2, 2, 3, 2, 1) if base == "ConvTranspose" else (2, 2, 3, 1, 1)
    size = (3, 2, 1) if base == "ConvTranspose" else (5, 3, 2)
    pixel = {"ConvTranspose": "DCL", "Conv": "Conv"}[base]
    original = kind(base, n)(*arguments, dtype=torch.float64)
    exact, other = (kind(f"{i}Pixel{pixel}", n)(*arguments, dtype=torch.float64, **design) for i in ("i", ""))
    exact.load_state_dict(original.state_dict(), strict=False)
    with torch.no_grad():
        for kernel in exact.dependency_kernels:
            kernel.zero_()
    x = torch.randn(2, 2, *size[:n], dtype=torch.float64)
    for last in [False] + [True] * (n in LAST):
        if last:
            x = x.contiguous(memory_format=LAST[n])
            original, exact, other = (m.to(memory_format=LAST[n]) for m in (original, exact, other))
        for name, derivative in DERIVATIVES.items():
            expected, got = (leaves(derivative(layer, x)) for layer in (original, exact))
            derivative(other, x)
            if name != "double backward":  # whose first gradients are those of more weights, which come last
                for a, b in zip(expected, got, strict=False):
                    torch.testing.assert_close(
                        b, a, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
                    )


def leaves(tree):
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]


@axes
@pytest.mark.parametrize("name", ["PixelDCL", "iPixelDCL", "PixelConv", "iPixelConv"])
def test_gradients_in_both_directions(n, name):
    layer = kind(name, n)(2, 2, 3, 2, 1, dtype=torch.float64, schedule="near" if n == 3 else "paired")
    x = torch.randn(1, 2, *(2, 3, 1)[:n], dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    weights = [p.detach().requires_grad_() for p in layer.parameters()]

    def run(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights), check_forward_ad=True, fast_mode=n == 3)
    assert torch.autograd.gradgradcheck(run, (x, *weights), fast_mode=True)


# ---- tools


ALL = pytest.mark.parametrize("name", ["PixelDCL", "iPixelDCL", "PixelConv", "iPixelConv"])


def tools_take(name, n, period, schedule, backend):
    """A layer and what torch's tools make of it are the same at the size that they saw and at another."""
    if "Conv" in name:
        layer = kind(name, n)(2, 3, 3, 1, 1, period=period, schedule=schedule).eval()
    else:
        layer = kind(name, n)(2, 3, 4, period, 1, schedule=schedule).eval()
    # an exported convolution holds for outputs that are cropped as the example's was: odd or even
    x = torch.randn(2, 2, *(5, 6, 4)[:n])
    other = torch.randn(3, 2, *(7, 4, 6 if "Conv" in name else 5)[:n])
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(other), layer(other))
        free = dict.fromkeys((0, *range(2, 2 + n)), torch.export.Dim.AUTO)
        program = torch.export.export(layer, (x,), dynamic_shapes=(free,))
        torch.testing.assert_close(program.module()(other), layer(other))
        torch.compiler.reset()
        compiled = torch.compile(layer, backend=backend, dynamic=True, fullgraph=True)
        for sample in (x, other):
            torch.testing.assert_close(compiled(sample), layer(sample))


@axes
@ALL
def test_traced_exported_and_compiled_for_any_size(n, name):
    # four phases along two of three axes have as many kinds of sizes as eight
    period, schedule = ((1, 2, 2), "paired") if n == 3 else (2, "near")
    tools_take(name, n, period, schedule, "eager")


@pytest.mark.slow
@ALL
def test_eight_near_phases_exported_and_traced_ahead_of_time(name):
    tools_take(name, 3, 2, "near", "aot_eager")


def test_only_the_geometry_that_a_weight_has_is_accepted():
    with pytest.raises(pixelize.ArgumentError, match=r"stride is .* needs 1 numbers"):
        pixelize.ipixel_dcl1d(torch.zeros(1, 2, 4), torch.zeros(2, 2, 3), [], stride=(2, 2))
    with pytest.raises(pixelize.ArgumentError, match="period is 0"):
        pixelize.PixelConv2d(2, 2, 3, period=0)
    with pytest.raises(pixelize.ArgumentError, match="two dimensions"):
        pixelize.iPixelDCL3d(2, 2, 2, 2, schedule="masked")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["PixelDCL", "iPixelDCL", "PixelConv", "iPixelConv"])
def test_onnx_runs_the_same(n, name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    arguments = (2, 3, 3, 1, 1) if "Conv" in name else (2, 3, 4, 2, 1)
    layer, x = kind(name, n)(*arguments).eval(), torch.randn(2, 2, *(5, 6, 4)[:n])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter, which takes a tenth of the other's time
        torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=False)
    session = runtime.InferenceSession(tmp_path / "layer.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x).detach(), rtol=0, atol=1e-5)
