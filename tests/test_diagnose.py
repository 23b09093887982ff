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


@pytest.mark.parametrize("n", [1, 3])
def test_what_makes_no_picture_is_sent_to_the_measure_for_it(n):
    model = getattr(nn, f"ConvTranspose{n}d")(2, 2, 4, 2, 1)
    with pytest.raises(pixelize.ArgumentError, match="checkerboard_nd"):
        pixelize.diagnose(model, torch.randn(2, 2, *(20,) * n))
