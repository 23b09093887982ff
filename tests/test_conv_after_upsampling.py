"""The convolutions that read what was just up-sampled, by whatever means, and no others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pixelize

AFTER = ("conv_after_upsampling",)


def kind(name: str, n: int) -> type[nn.Module]:
    return getattr(nn, f"{name}{n}d")


class Ways(nn.Module):
    """Every way of up-sampling along ``n`` axes, with a convolution behind each: those called ``after_..``
    read what was up-sampled, those called ``not_..`` do not."""

    def __init__(self, n: int, branches: bool) -> None:
        super().__init__()
        conv = kind("Conv", n)
        self.n, self.branches = n, branches
        self.not_first = conv(2, 4, 3, padding=1)
        self.up = kind("ConvTranspose", n)(4, 4, 4, 2, 1)
        self.norm = kind("BatchNorm", n)(4)
        self.after_transposed = conv(4, 4, 3, padding=1)
        self.not_second = conv(4, 4, 3, padding=1)
        self.not_resized = conv(4, 4, 3, padding=1)  # an up-sampler itself, with the resize
        self.one_tap = conv(4, 4, 1)
        self.after_one_tap = conv(4, 4, 3, padding=1)
        self.after_resize = conv(4, 4, 3, padding=1)
        self.not_shuffled = conv(4, 4 * 2**n, 3, padding=1)  # an up-sampler itself, with the shuffle
        self.after_shuffle = conv(4, 4, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 4, *(2,) * n) / 4)
        self.after_call = conv(6, 4, 3, padding=1)
        self.not_pooled = conv(4, 4, 3, padding=1)
        self.level = kind("ConvTranspose", n)(4, 4, 3, 1, 1)
        self.not_level = conv(4, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, mode = self.n, ("linear", "bilinear", "trilinear")[self.n - 1]
        if self.branches and x.sum() > 1e9:
            raise RuntimeError("too bright")
        skip = x
        x = self.not_first(x)
        x = self.not_second(self.after_transposed(torch.relu(self.norm(self.up(x)))))
        x = self.not_resized(F.interpolate(x[(..., *[slice(0, 3)] * n)], scale_factor=2))
        x = self.after_one_tap(torch.relu(self.one_tap(x)))[(..., *[slice(0, 4)] * n)]
        x = self.after_resize(F.interpolate(x, scale_factor=2, mode=mode, align_corners=True))
        x = self.not_shuffled(x[(..., *[slice(0, 3)] * n)])
        x = x.unflatten(1, (4, *(2,) * n))
        order = [0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i))]
        x = x.permute(order).reshape(len(x), 4, *(6,) * n)
        x = self.after_shuffle(F.pad(x, (0, 1) * n))[(..., *[slice(0, 3)] * n)]
        x = getattr(F, f"conv_transpose{n}d")(x, self.weight, stride=2)
        skip = F.pad(skip, (0, 1) * n)
        x = self.after_call(torch.cat([F.silu(x), skip], 1))
        x = self.not_pooled(getattr(F, f"avg_pool{n}d")(self.up(x), 2))
        return self.not_level(self.level(x))


def inputs(n: int) -> torch.Tensor:
    return torch.randn(2, 2, *(5,) * n, dtype=torch.float64)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_reads_up_sampled_pixels_and_nothing_else(n, branches, tmp_path):
    model, x = Ways(n, branches).double().eval(), inputs(n)
    wanted = {name for name, _ in model.named_modules() if name.startswith("after")}
    new = pixelize.convert(model, sites=AFTER, example_inputs=x)
    rows = {row.name: row for row in pixelize.report(new).converted}
    assert rows.keys() == wanted
    assert {row.layer for row in rows.values()} == {f"iPixelConv{n}d"}
    assert pixelize.report(new).error < 1e-13
    loaded = pixelize.load(pixelize.save(new, tmp_path / "model"), into=Ways(n, branches).double().eval())
    assert torch.equal(loaded(x), new(x))
    assert torch.equal(pixelize.revert(new)(x), model(x))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_after_up_samplers_that_were_converted_before(n):
    model, x = Ways(n, False).double().eval(), inputs(n)
    wanted = {name for name, _ in model.named_modules() if name.startswith("after")}
    converted = pixelize.convert(model, example_inputs=x)
    first = {row.name for row in pixelize.report(converted).converted}
    assert {"not_resized", "not_shuffled", "up"} <= first and not first & wanted
    both = pixelize.convert(converted, sites=AFTER, example_inputs=x)
    assert {row.name for row in pixelize.report(both).converted} - first == wanted
    torch.testing.assert_close(both(x), model(x), rtol=0, atol=1e-12)


def test_a_model_that_is_not_seen_as_a_graph_says_so():
    with pytest.raises(pixelize.NothingToConvertError, match="as a graph only") as error:
        pixelize.convert(Ways(2, False), sites=AFTER)
    assert "Pass example_inputs" in str(error.value)
    with pytest.raises(pixelize.ArgumentError, match="sites has 'conv_after_upsampling'"):
        pixelize.convert(Ways(2, False), "pixeldcl", sites=AFTER)
