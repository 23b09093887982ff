"""Linear layers whose output is unfolded into pixels: converted where their input has the grid."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

import pixelize
from pixelize import iPixelDCL1d, iPixelDCL2d, iPixelDCL3d

FACTORS = {1: (3,), 2: (2, 3), 3: (1, 2, 2)}
GRIDS = {1: (5,), 2: (3, 4), 3: (2, 3, 3)}


class Head(nn.Linear):
    """A linear layer with more to it, as libraries have."""

    def features(self) -> int:
        return self.out_features


class Unfolded(nn.Module):
    """(N, 3, *grid) to (N, 2, *grid * factor), by a linear layer over the channels."""

    def __init__(self, n: int, form: str, bias: bool = True) -> None:
        super().__init__()
        self.factor, self.form = FACTORS[n], form
        self.first = nn.Conv2d(3, 6, 1) if n == 2 else (nn.Conv1d if n == 1 else nn.Conv3d)(3, 6, 1)
        self.unfold = Head(6, 2 * prod(self.factor), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor, n, grid = self.factor, len(self.factor), tuple(x.shape[2:])
        y = self.unfold(self.first(x).movedim(1, -1))
        if self.form == "activated":
            y = torch.nn.functional.silu(y)
        if self.form == "channels last in the features":
            y = y.reshape(len(x), *grid, *factor, 2)
            place = [2 * n + 1, *(axis for i in range(n) for axis in (1 + i, 1 + n + i))]
        else:
            y = y.reshape(len(x), *grid, 2, *factor)
            place = [n + 1, *(axis for i in range(n) for axis in (1 + i, 2 + n + i))]
        size = [a * b for a, b in zip(grid, factor, strict=True)]
        if self.form == "channels last in the picture":
            return y.permute(0, *place[1:], place[0]).reshape(len(x), *size, 2)
        return y.permute(0, *place).reshape(len(x), 2, *size)


FORMS = ("plain", "activated", "channels last in the features", "channels last in the picture")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_converted_exactly_where_the_input_has_the_grid(n, form, tmp_path):
    torch.manual_seed(n)
    model = Unfolded(n, form, bias=form != "activated").double()
    x = torch.randn(2, 3, *GRIDS[n], dtype=torch.float64)
    other = torch.randn(3, 3, *(g + 1 for g in GRIDS[n]), dtype=torch.float64)
    new = pixelize.convert(model, example_inputs=x)
    (row,) = pixelize.report(new).converted
    assert (row.name, row.kind, row.layer) == ("unfold", "pixel_shuffle", f"iPixelDCL{n}d")
    assert row.stride == FACTORS[n] == row.kernel_size
    assert isinstance(new.unfold, Head) and new.unfold.features() == model.unfold.out_features
    for sample in (x, other):
        torch.testing.assert_close(new(sample), model(sample), rtol=0, atol=1e-13)
    plain = pixelize.convert(model, "dcl", example_inputs=x)
    torch.testing.assert_close(plain(other), model(other), rtol=0, atol=1e-13)
    assert torch.equal(pixelize.revert(new)(other), model(other))
    new = pixelize.convert(model, example_inputs=x)
    assert isinstance(new.unfold.layer, {1: iPixelDCL1d, 2: iPixelDCL2d, 3: iPixelDCL3d}[n])
    for kernel in new.unfold.layer.dependency_kernels:
        nn.init.normal_(kernel, 0, 0.1)
    assert not torch.allclose(new(x), model(x))
    loaded = pixelize.load(
        pixelize.save(new, tmp_path / "model"), into=Unfolded(n, form, bias=form != "activated").double()
    )
    assert torch.equal(loaded(other), new(other))


def test_the_state_of_the_original_is_taken():
    torch.manual_seed(0)
    model, trained = Unfolded(2, "plain"), Unfolded(2, "plain")
    x = torch.randn(1, 3, 3, 4)
    new = pixelize.convert(model, example_inputs=x)
    new.load_state_dict(trained.state_dict(), strict=False)
    torch.testing.assert_close(new(x), trained(x))


def test_an_input_without_a_grid_is_refused_in_the_call():
    new = pixelize.convert(Unfolded(2, "plain"), example_inputs=torch.randn(1, 3, 3, 4))
    with pytest.raises(ValueError, match="2 axes, and got"):
        new.unfold(torch.randn(1, 12, 6))


class Tokens(nn.Module):
    """Tokens in a row, mixed by attention, unfolded into a picture of 4 x 6 patches."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.qkv, self.out, self.written = nn.Linear(8, 24), nn.Linear(8, 3 * 2 * 5), written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(len(x), 24, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = self.out(x)
        if self.written == "einsum":
            y = torch.einsum("nhwpqc->nchpwq", y.reshape(len(x), 4, 6, 2, 5, 3))
        else:
            y = y.view(len(x), 4, 6, 3, 2, 5).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(len(x), 3, 8, 30)


@pytest.mark.parametrize("written", ["einsum", "permute"])
def test_tokens_in_a_row_are_listed_with_the_reason(written):
    found = pixelize.inspect(Tokens(written), torch.randn(2, 24, 8))
    assert not found.found
    assert [(row.name, row.type) for row in found.skipped] == [("out", "Linear")]
    assert "does not tell their grid" in found.skipped[0].reason


def test_attention_is_not_taken_for_up_sampling():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = pixelize.inspect(layer, torch.randn(2, 6, 8))
    assert not found.sites
