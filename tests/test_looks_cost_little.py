"""Looking at a model copies no weights, writes to none, and is worth only so much memory and time."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pixelize
from pixelize.rewrites.seeing.apart import apart
from pixelize.rewrites.seeing.bounded import LARGEST, MULTIPLY_ADDS, Bounded, CostlyError
from pixelize.rewrites.seeing.other_size import at_another_size

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Writing(nn.Module):
    """A forward that writes to its weight in one way or another."""

    def __init__(self, write=None):
        super().__init__()
        self.up, self.write = nn.ConvTranspose2d(3, 3, 4, 2, 1), write

    def forward(self, x):
        if self.write is not None:
            self.write(self.up.weight)
        return self.up(x)


def swallowed(weight):
    with contextlib.suppress(BaseException):
        weight.data.add_(1)


def from_numpy(weight):
    np.add(weight.detach().numpy(), 1, out=weight.detach().numpy())


WRITES = {
    "data": lambda w: w.data.copy_(torch.ones_like(w)),
    "a view of it": lambda w: w.data[0].fill_(1),
    "out": lambda w: torch.add(w, 1, out=w.data),
    "many at once": lambda w: torch._foreach_add_([w.data], 1.0),
    "in place": lambda w: w.mul_(2),
    "masked": lambda w: w.__setitem__(w > 0, 0.0),
    "initialised": lambda w: nn.init.ones_(w),
    "set": lambda w: w.set_(torch.ones_like(w)),
    "other data": lambda w: setattr(w, "data", torch.ones_like(w)),
    "numpy": from_numpy,
    "storage": lambda w: w.data.untyped_storage().fill_(0),
    "a bare except": swallowed,
}


@pytest.mark.parametrize("act", [pixelize.inspect, pixelize.convert])
@pytest.mark.parametrize("name", WRITES)
def test_a_forward_that_writes_to_weights_writes_to_a_copy(name, act):
    torch.manual_seed(0)
    model = Writing(WRITES[name]).eval()
    before, memory = model.up.weight.detach().clone(), model.up.weight.data_ptr()
    act(model, example_inputs=X)
    assert torch.equal(model.up.weight, before) and model.up.weight.data_ptr() == memory


def test_what_a_write_does_is_seen():
    model = Writing(WRITES["data"]).eval()
    wanted = F.conv_transpose2d(X, torch.ones(3, 3, 4, 4), model.up.bias, 2, 1)
    assert torch.equal(apart(model, lambda copy: copy(X)), wanted)


def test_weights_are_copied_only_for_whom_writes_to_them():
    def look(copy):
        copy(X)
        return copy.up.weight.detach()

    model = Writing().eval()
    memory = model.up.weight.data_ptr()
    assert apart(model, look).data_ptr() == memory
    model.write = WRITES["a view of it"]
    assert apart(model, look).data_ptr() != memory


def test_random_numbers_begin_again_with_the_second_copy():
    model, drawn = Writing(WRITES["data"]).train(), []

    def look(copy):
        drawn.append(torch.rand(2))
        return copy(X)

    apart(model, look)
    assert len(drawn) == 2 and torch.equal(*drawn)


class Attention(nn.Module):
    """Every pixel looks at every other: (H W)^2 numbers."""

    def __init__(self, size, form="product"):
        super().__init__()
        self.size, self.form = size, form
        self.stem, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, x):
        if x.shape[-1] < self.size:
            raise ValueError("too small")
        x = self.stem(x)
        flat = x.flatten(2).transpose(1, 2)
        if self.form == "product":
            flat = torch.softmax(flat @ flat.transpose(1, 2), -1) @ flat
        elif self.form == "difference":
            flat = (flat[..., :1] - flat[..., 0][:, None]).abs().softmax(-1) @ flat
        else:
            for _ in range(200):
                flat = F.scaled_dot_product_attention(flat, flat, flat)
        return self.up(flat.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("form", ["product", "difference", "attention"])
def test_a_guess_that_would_cost_too_much_is_not_run(form):
    model = Attention(256, form).eval()
    found = pixelize.inspect(model)
    assert [site.name for site in found.found] == ["up"]
    assert any("a guess was not run" in note and "pass example_inputs" in note for note in found.notes)


COSTLY = {
    "zeros": lambda: torch.zeros(2**14, 2**15),
    "product": lambda: torch.ones(2**15, 1) @ torch.ones(1, 2**15),
    "broadcast": lambda: torch.ones(2**15, 1) + torch.ones(2**15),
    "resize": lambda: F.interpolate(torch.ones(1, 1, 64, 64), scale_factor=400.0),
    "resize to a size": lambda: F.interpolate(torch.ones(1, 1, 64, 64), size=(2**14, 2**14)),
    "repeat": lambda: torch.ones(3, 5).repeat(10**4, 10**4),
    "attention": lambda: F.scaled_dot_product_attention(*[torch.ones(1, 2, 2**18, 64)] * 3),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_one_operator_would_cost_is_known_before_it_runs(name):
    with Bounded(), pytest.raises(CostlyError):
        COSTLY[name]()


def test_what_many_operators_cost_adds_up():
    bounded = Bounded()
    with bounded:
        x = F.conv2d(torch.ones(2, 3, 9, 9), torch.ones(5, 3, 3, 3), padding=1)
        x.flatten(2) @ torch.ones(81, 7)
    assert bounded.multiply_adds == 2 * 5 * 81 * 27 + 2 * 5 * 81 * 7
    bounded.multiply_adds = MULTIPLY_ADDS
    with bounded, pytest.raises(CostlyError, match="multiply-adds"):
        torch.ones(2, 2) @ torch.ones(2, 2)


def test_nothing_costs_anything_on_the_meta_device():
    with Bounded():
        x = torch.ones(2**20, 2**10, device="meta")
        assert (x @ x.T).nbytes > LARGEST


def test_a_larger_size_is_tried_only_at_a_cost_that_is_worth_it():
    sizes = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(1, 1, 4, 2, 1)

        def forward(self, x):
            sizes.append(x.shape[-1])
            n = x.shape[-1] * 300  # 460 MB at 36 pixels
            return self.up(x + torch.ones(n, 1).expand(n, n).contiguous().sum() * 0)

    assert at_another_size(Net().eval(), torch.randn(1, 1, 36, 36)) is not None
    assert sizes == [54, 72, 18]
