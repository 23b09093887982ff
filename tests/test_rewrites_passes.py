"""The passes by themselves: torch.fx's conventions, exact, nothing rewritten that somebody else needs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

from pixelize.rewrites.applying.passes import (
    OutlineConvTranspose,
    PixelShuffleToConvTranspose,
    ResizeConvToConvTranspose,
    ResizeToConvTranspose,
)

PASSES = (
    OutlineConvTranspose,
    ResizeConvToConvTranspose,
    PixelShuffleToConvTranspose,
    ResizeToConvTranspose,
)


class Everything(nn.Module):
    """One of each idiom in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 4, 4, 4) * 0.1)
        self.conv = nn.Conv2d(4, 5, 3, padding=1)
        self.shuffled = nn.Conv2d(5, 8, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(x, self.kernel, stride=2, padding=1)
        x = self.conv(F.interpolate(x.relu(), scale_factor=2))
        x = F.pixel_shuffle(self.shuffled(x), 2)
        return self.up(x).tanh()


def names(graph: fx.GraphModule) -> list[str]:
    return [
        str(getattr(n.target, "__name__", n.target)) for n in graph.graph.nodes if n.op.startswith("call")
    ]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_all_passes_in_a_row_leave_only_transposed_convolutions(dtype, tolerance):
    graph = fx.symbolic_trace(Everything().to(dtype))
    x = torch.randn(2, 3, 5, 6, dtype=dtype)
    before, other = graph(x), graph(x[:1, :, 1:])
    passes = [OutlineConvTranspose(), ResizeConvToConvTranspose(), PixelShuffleToConvTranspose()]
    result = PassManager([*passes, ResizeToConvTranspose(x)])(graph)  # channels are known from a run
    assert result.modified
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in result.graph_module.modules()) == 4
    assert not any(type(m) is nn.Conv2d for m in result.graph_module.modules())
    assert "interpolate" not in names(result.graph_module)  # it fed one convolution alone
    torch.testing.assert_close(result.graph_module(x), before, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(result.graph_module(x[:1, :, 1:]), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_is_a_pass(kind):
    assert issubclass(kind, PassBase)
    graph = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    code = graph.code
    result = kind()(graph)
    assert isinstance(result, PassResult) and not result.modified and result.graph_module.code == code


class Shared(nn.Module):
    """The resized picture is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        u = F.interpolate(x, scale_factor=2)
        return self.conv(u).sum(1, keepdim=True) + u


def test_a_resize_that_somebody_else_reads_stays():
    graph = fx.symbolic_trace(Shared().double())
    x = torch.randn(1, 3, 4, 5).double()
    before = graph(x)
    result = ResizeConvToConvTranspose()(graph)
    assert result.modified and "interpolate" in names(graph)
    torch.testing.assert_close(graph(x), before, rtol=1e-12, atol=1e-12)


class Skip(nn.Module):
    """A concatenation in between, whose widths only a run can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))


def test_example_inputs_show_what_is_concatenated():
    inputs = (torch.randn(1, 3, 4, 5).double(), torch.randn(1, 2, 8, 10).double())
    graph = fx.symbolic_trace(Skip().double())
    assert not ResizeConvToConvTranspose()(copy.deepcopy(graph)).modified
    before = graph(*inputs)
    assert ResizeConvToConvTranspose(inputs)(graph).modified
    torch.testing.assert_close(graph(*inputs), before, rtol=1e-12, atol=1e-12)


def test_a_resize_to_a_size_is_not_taken_out_of_the_graph():
    """Its factor is known for this size only: the replacement keeps looking."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor, like: Tensor) -> Tensor:
            return self.conv(F.interpolate(x, size=like.shape[-2:]))

    graph = fx.symbolic_trace(Sized().double())
    x, like = torch.randn(1, 3, 4, 5).double(), torch.zeros(1, 1, 8, 10).double()
    odd = graph(x, like[..., :7, :9])
    ResizeConvToConvTranspose((x, like))(graph)
    assert "interpolate" in names(graph)
    torch.testing.assert_close(graph(x, like[..., :7, :9]), odd, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, (2, 4)])
@pytest.mark.parametrize("settings", [{"kernel_size": 3}, {"kernel_size": 4, "groups": 2}])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_a_bilinear_resize_leaves_the_graph_where_the_convolution_does_not_zero_pad(scale, settings, padding):
    conv = nn.Conv2d(4, 6, padding=padding, padding_mode="replicate", **settings)
    model = nn.Sequential(nn.Upsample(scale_factor=scale, mode="bilinear"), conv, nn.Tanh()).double()
    graph = fx.symbolic_trace(model)
    x = torch.randn(2, 4, 7, 6).double()
    before, other = graph(x), graph(x[..., 1:, 1:])
    result = ResizeConvToConvTranspose()(graph)
    calls = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert result.modified and calls == ["1", "2"]
    torch.testing.assert_close(graph(x), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(graph(x[..., 1:, 1:]), other, rtol=1e-12, atol=1e-12)


def test_a_bilinear_resize_stays_where_the_convolution_zero_pads():
    """The convolution is converted all the same: it needs the resized picture's border."""
    model = nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3, padding=1)
    ).double()
    graph = fx.symbolic_trace(model)
    x = torch.randn(1, 4, 5, 6).double()
    before = graph(x)
    assert ResizeConvToConvTranspose()(graph).modified
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["0", "1"]
    torch.testing.assert_close(graph(x), before, rtol=1e-12, atol=1e-12)
