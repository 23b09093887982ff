"""A diagnosis names what was spoilt, in networks where that is known, and nothing in sound ones."""

from __future__ import annotations

import json

import pytest
import torch
from pattern_zoo import Network, make, make_uneven, smooth
from torch import nn
from torch.nn import functional as F

import pixelize
from pixelize.errors import ArgumentError

SEEDS = range(5)


def told(fault: str, seed: int) -> tuple[set[str], list[str], str | None]:
    case = make(fault, seed)
    if case is None:
        pytest.skip("the draw has no layer for this fault")
    found = pixelize.diagnose(case.model, case.data)
    return {s.kind for s in found.sources}, [n for s in found.sources for n in s.names], case.layer


@pytest.mark.parametrize("seed", SEEDS)
def test_sound_networks_have_no_source(seed: int) -> None:
    assert told("clean", seed)[0] == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_uneven_layer_is_named(seed: int) -> None:
    kinds, names, layer = told("uneven", seed)
    assert kinds == {"up-sampler"} and all(n.startswith(layer) for n in names)


@pytest.mark.parametrize("seed", SEEDS)
def test_swapped_phases_are_told_from_uneven_ones(seed: int) -> None:
    kinds, names, layer = told("swapped", seed)
    assert kinds == {"swapped phases"} and all(n.startswith(layer) for n in names)


@pytest.mark.parametrize("fault", ["inputs", "tiles", "elsewhere"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_no_up_sampler_makes(fault: str, seed: int) -> None:
    assert told(fault, seed)[0] == {fault}


def test_two_faults_are_both_found() -> None:
    model = Network(["conv_transpose", "pixel_shuffle"], [2, 2], 3)
    make_uneven(model.ups[0], 0)
    make_uneven(model.ups[1], 1)
    found = pixelize.diagnose(model, smooth(16, 4, 16, 0))
    assert {n.removesuffix(".conv") for s in found.sources for n in s.names} == {"ups.0", "ups.1"}
    model = Network(["rearrange"], [2], 5)
    make_uneven(model.ups[0], 0)
    model.added = 0.2 * (-1.0) ** torch.arange(128).expand(128, 128)
    found = pixelize.diagnose(model, smooth(16, 4, 32, 0))
    assert {s.kind for s in found.sources} == {"up-sampler", "elsewhere"}


def test_functions_without_a_module_are_seen() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(4, 3, 2, 2))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"depth": F.conv_transpose2d(F.interpolate(x, scale_factor=2.0), self.w, stride=2)}

    found = pixelize.diagnose(Functional(), smooth(16, 4, 16, 0))
    assert [(row.kind, row.stride) for row in found.up_samplers] == [
        ("resize", (2, 2)),
        ("conv_transpose", (2, 2)),
    ]
    assert found.sources[0].kind == "up-sampler"


def test_it_changes_nothing_and_reads_little() -> None:
    model = Network(["conv_transpose"], [2], 0).train()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    read = []

    def stream():
        while True:
            read.append(1)
            yield smooth(8, 4, 16, len(read))

    pixelize.diagnose(model, stream())
    assert torch.equal(rng, torch.get_rng_state()) and model.training and len(read) < 20
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_the_report_is_text_data_and_html() -> None:
    case = make("uneven", 1)
    found = pixelize.diagnose(case.model, case.data)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["sources"][0]["kind"] == "up-sampler" and data["up_samplers"]
    assert "repair" in str(found) and "<table" in found._repr_html_() and len(repr(found)) < 100
    assert max(map(len, found.text(60).splitlines())) <= 60


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (nn.Flatten(), torch.zeros(2, 3, 16, 16), "holds no picture"),
        (nn.Identity(), [], "empty"),
        (nn.Identity(), torch.full((1, 1, 16, 16), torch.nan), "NaN"),
        (nn.Identity(), torch.zeros(2, 3, 8, 8), "16x16"),
        ("a path", torch.zeros(2, 3, 16, 16), "not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(model, data, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        pixelize.diagnose(model, data)


class Along(nn.Module):
    """Interpolating transposed convolutions between others, along one axis or three."""

    def __init__(self, axes: int, strides: tuple[int, ...], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        conv, transposed = (getattr(nn, f"{name}{axes}d") for name in ("Conv", "ConvTranspose"))
        self.stem, self.head = conv(4, 8, 3, padding=1), conv(8, 1, 3, padding=1)
        self.ups, self.mids = nn.ModuleList(), nn.ModuleList(conv(8, 8, 3, padding=1) for _ in strides)
        for s in strides:
            up = transposed(8, 8, 2 * s, s, s // 2, output_padding=0)
            weight = torch.randn(8, 8) / 8**0.5
            for _ in range(axes):
                weight = weight[..., None] * (1 - (torch.arange(2 * s) - (2 * s - 1) / 2).abs() / s)
            up.weight.data = weight
            self.ups.append(up)

    def forward(self, x):
        h = F.gelu(self.stem(x))
        for up, mid in zip(self.ups, self.mids, strict=True):
            h = up(h)
            h = h + 0.3 * F.gelu(mid(h))
        return self.head(h)


def rough(axes: int, size: int, seed: int) -> torch.Tensor:
    """(6, 4, *size) with a falling spectrum."""
    x = torch.randn(6, 4, *(size,) * axes, generator=torch.Generator().manual_seed(seed))
    square = sum(torch.meshgrid(*[torch.fft.fftfreq(size).square()] * axes, indexing="ij"))
    along = tuple(range(2, 2 + axes))
    return torch.fft.ifftn(torch.fft.fftn(x, dim=along) / (0.005 + square).sqrt(), dim=along).real + 1


@pytest.mark.parametrize("spoilt", ["", "ups.0", "ups.1", "swapped"])
@pytest.mark.parametrize(
    ("axes", "strides", "size", "seed"), [(1, (4, 2), 300, 1), (1, (3, 5), 200, 3), (3, (2,), 16, 3)]
)
def test_waveforms_and_volumes(axes, strides, size, seed, spoilt: str) -> None:
    model = Along(axes, strides, seed)
    if spoilt == "ups.1" and len(strides) < 2:
        pytest.skip("has one up-sampler")
    layer = model.get_submodule(spoilt if "." in spoilt else "ups.0")
    weight = layer.weight.data.unflatten(2, (-1, layer.stride[0]))  # a slice for each phase of the first axis
    if spoilt == "swapped":
        layer.weight.data = weight.flip(3).flatten(2, 3).contiguous()
    elif spoilt:
        gains = 1 + torch.rand(8, 1, layer.stride[0], *(1,) * (axes - 1)) / 2
        layer.weight.data = (weight * gains).flatten(2, 3).contiguous()
    found = pixelize.diagnose(model, rough(axes, size, 1))
    kind = {"": set(), "swapped": {"swapped phases"}}.get(spoilt, {"up-sampler"})
    assert {source.kind for source in found.sources} == kind
    assert {name for source in found.sources for name in source.names} <= {
        "ups.0" if spoilt == "swapped" else spoilt
    }
    assert found.levels.axes == axes and ("waveforms" if axes == 1 else "volumes") in str(found)
    assert [row.stride for row in found.up_samplers] == [(s,) * axes for s in strides]


def test_shuffles_along_one_axis_are_seen_and_attention_is_not() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.conv = nn.Conv1d(8, 8, 1), nn.Conv1d(8, 16, 3, padding=1)

        def forward(self, x):
            n, c, length = x.shape
            heads = self.q(x).transpose(1, 2).reshape(n, length, 2, 4).transpose(1, 2)
            h = (
                x
                + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(n, length, c).mT
            )
            return self.conv(h).view(n, 4, 4, length).permute(0, 1, 3, 2).reshape(n, 4, 4 * length)

    found = pixelize.diagnose(Shuffled(), torch.randn(4, 8, 200))
    assert [(row.kind, row.stride) for row in found.up_samplers] == [("rearrange", (4,))]
