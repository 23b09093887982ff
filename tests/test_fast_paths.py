"""The fast forms of the layers against slow, obvious ones, in float64: shuffling, the first phase, the
dependencies, memory.
"""

from __future__ import annotations

import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelize import PixelDCL2d, iPixelDCL2d
from pixelize.algebra.polyphase import axis_phases, phase_weight
from pixelize.algebra.schedule import make_schedule
from pixelize.layers.dependencies import dependency
from pixelize.layers.functional import first_phase
from pixelize.layers.interleave import interleave, split_phases

STRIDES = [(1, 1), (2, 2), (3, 2), (1, 4)]


def slow_interleave(phases, stride, size, bias):
    """One pixel at a time."""
    first = next(iter(phases.values()))[0]
    y = first.new_zeros(*first.shape[:-2], *size)
    for i, j in itertools.product(range(size[0]), range(size[1])):
        for f in phases[i % stride[0], j % stride[1]]:
            y[..., i, j] += f[..., i // stride[0], j // stride[1]]
        if bias is not None:
            y[..., i, j] += bias
    return y


def random_phases(stride, shape=(2, 3, 4, 5), last=False, terms=2):
    memory_format = torch.channels_last if last else torch.contiguous_format
    return {
        (a, b): [
            torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
            for _ in range(1 + (a + b) % terms)
        ]
        for a in range(stride[0])
        for b in range(stride[1])
    }


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("cut", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_interleave_and_its_gradient(stride, last, cut, with_bias):
    phases = random_phases(stride, last=last, terms=3)
    size = tuple(s * n - min(c, s - 1) for s, n, c in zip(stride, (4, 5), cut, strict=True))
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True) if with_bias else None
    y = interleave(phases, stride, size=size, bias=bias)
    expected = slow_interleave(phases, stride, size, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    leaves = [f for terms in phases.values() for f in terms] + ([bias] if with_bias else [])
    g = torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (2, 2, 1)])
def test_every_kind_of_derivative(shape):
    stride = (2, 3)
    phases = random_phases(stride, shape)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    keys, counts = list(phases), [len(terms) for terms in phases.values()]
    size = (2 * shape[-2] - 1, 3 * shape[-1] - 1)

    def run(bias, *maps):
        given = iter(maps)
        terms = {key: [next(given) for _ in range(n)] for key, n in zip(keys, counts, strict=True)}
        return interleave(terms, stride, size=size, bias=bias)

    maps = [f for terms in phases.values() for f in terms]
    assert torch.autograd.gradcheck(run, (bias, *maps), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (bias, *maps))
    x = torch.randn(*shape[:-2], 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: tuple(split_phases(x, stride).values()), (x,), check_forward_ad=True
    )
    assert torch.autograd.gradgradcheck(lambda x: tuple(split_phases(x, stride).values()), (x,))


def test_split_phases_undoes_interleave():
    phases = {phase: terms[0] for phase, terms in random_phases((3, 2)).items()}
    for phase, view in split_phases(interleave(phases, (3, 2)), (3, 2)).items():
        assert torch.equal(view, phases[phase])


@pytest.mark.parametrize(
    "k, s, p, d", [(4, 2, 1, 1), (3, 2, 1, 1), (6, 2, 2, 1), (5, 3, 0, 2), (2, 4, 1, 3), (3, 3, 3, 3)]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_each_phase_is_a_transposed_convolution_of_stride_1(k, s, p, d, groups):
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    weight = torch.randn(4, 3, k, k, dtype=torch.float64)
    whole = F.conv_transpose2d(x, weight, None, s, p, 0, groups, d)
    axes = axis_phases(k, s, p, d)
    growth = -(-whole.shape[-1] // s) - 6
    seen = 0
    for a, b in itertools.product(range(s), range(s)):
        if axes[a].taps and axes[b].taps:
            taps = phase_weight(weight, axes[a], axes[b])
            got = first_phase(x, taps, (k, k), (s, s), (p, p), (d, d), groups, (growth, growth), (a, b))
            wanted = whole[..., a::s, b::s]
            assert got.shape[-2:] == (6 + growth, 6 + growth)
            torch.testing.assert_close(
                got[..., : wanted.shape[-2], : wanted.shape[-1]], wanted, rtol=0, atol=1e-12
            )
            seen += 1
    assert seen


@pytest.mark.parametrize("schedule", ["paired", "sequential", "masked"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (2, 5)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dependencies_tap_by_tap(schedule, size, groups):
    if schedule == "masked" and size != (3, 3):
        pytest.skip("masked kernels are odd, 3 or more")
    plan = make_schedule(schedule, (2, 2), size)
    phases = {
        phase: torch.randn(2, 4, 3, 5, dtype=torch.float64) for phase in itertools.product((0, 1), (0, 1))
    }
    for stage in plan.stages:
        kernel = torch.randn(stage.kernel_shape(4, groups, size), dtype=torch.float64)
        got = dependency(stage, kernel, phases, 4, groups)
        for target, windows in stage.windows(kernel, 4, groups).items():
            expected = torch.zeros(2, 4, 3, 5, dtype=torch.float64)
            for source, start, dense in windows:
                far = F.pad(phases[source], (8, 8, 8, 8))
                for y, x in itertools.product(*map(range, dense.shape[-2:])):
                    top, left = 8 + start[0] + y, 8 + start[1] + x
                    pixels = far[..., top : top + 3, left : left + 5]
                    expected += torch.einsum("oc,nchw->nohw", dense[:, :, y, x], pixels)
            torch.testing.assert_close(got[target], expected, rtol=0, atol=1e-12)


DESIGNS = [
    dict(),
    dict(dependency_kernel_size=2),
    dict(schedule="masked"),
    dict(schedule="sequential", dependency_groups=2),
    dict(dependency_groups=4),
]


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_form_in_graphs_is_the_form_in_eager_execution(kind, design):
    torch.compiler.reset()
    layer = kind(6, 4, 4, 2, 1, output_padding=1, dtype=torch.float64, **design)
    graph = torch.compile(layer, backend="eager", fullgraph=True)
    for last in (False, True):
        x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
        if last:
            x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        leaves = [x, *layer.parameters()]
        results = []
        for form in (layer, graph):
            y = form(x)
            assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(eager, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_function_transforms(kind):
    layer = kind(2, 3, 4, 2, 1, dtype=torch.float64)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(layer)(x), layer(x)
    )  # one picture at a time is unbatched input
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None]), layer(x)[:, None])
    got = torch.func.vmap(torch.func.grad(lambda x: layer(x).square().sum()))(x)
    wanted = x.clone().requires_grad_()
    layer(wanted).square().sum().backward()
    torch.testing.assert_close(got, wanted.grad)
    value, tangent = torch.func.jvp(layer, (x,), (x,))
    bias = layer.bias.detach()[:, None, None]
    torch.testing.assert_close(tangent, value - bias)  # linear up to the bias


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
@pytest.mark.parametrize("design", DESIGNS)
def test_small_channels_last_layers_train(kind, design):
    layer = kind(16, 16, 2, 2, **design).to(memory_format=torch.channels_last)
    x = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
def test_traced_layer_is_saved_and_loaded(kind):
    layer = kind(2, 3, 4, 2, 1).eval()
    x = torch.randn(1, 2, 4, 4)
    traced = torch.jit.trace(layer, x)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), layer(x))


@pytest.mark.parametrize("kind", [iPixelDCL2d, PixelDCL2d])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("last", [False, True])
def test_activations_kept_for_training(kind, design, last):
    memory_format = torch.channels_last if last else torch.contiguous_format
    layer = kind(8, 4, 4, 2, 1, **design).to(memory_format=memory_format)
    plain = nn.ConvTranspose2d(8, 4, 4, 2, 1).to(memory_format=memory_format)
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=memory_format).requires_grad_()
    kept, output = saved_bytes(layer, x)
    reference, _ = saved_bytes(plain, x)
    assert reference == x.nbytes and kept > reference
    assert kept <= reference + output  # the phases together are as large as the output


def saved_bytes(module, x):
    """Bytes of the storages that autograd keeps for the backward pass, weights not counted, and of the
    output.
    """
    shapes = {p.shape for p in module.parameters()}
    found = {}

    def keep(t):
        if t.dim() == 4 and t.shape[0] == x.shape[0] and t.shape not in shapes:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = module(x)
    return sum(found.values()), y.nbytes
