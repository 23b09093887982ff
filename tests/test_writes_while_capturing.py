"""A resized picture that is written to before the convolution reads it, in ways that hide from torch's
functions: seen in eager mode, under ``torch.compile`` and by both ways of ``torch.export``."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pixelize
from pixelize.running.outputs import relative_error


def assigned(u: Tensor) -> Tensor:
    u[..., 0] = 7.0
    return u


def masked(u: Tensor) -> Tensor:
    u[u > 0] *= 2
    return u


def through_a_view(u: Tensor) -> Tensor:
    u.view(-1)[::3] = 1.0
    return u


def through_a_row(u: Tensor) -> Tensor:
    for picture in u:
        picture[..., 0] = 3.0
    return u


def through_a_chunk(u: Tensor) -> Tensor:
    u.chunk(2, 1)[1][..., 1] = 2.0
    return u


def through_data(u: Tensor) -> Tensor:
    u.data[..., 0] = 7.0
    return u


def through_an_attribute(u: Tensor) -> Tensor:
    u.real[..., 0] = 1.0
    return u


def by_an_operator(u: Tensor) -> Tensor:
    operator.setitem(u, (..., 0), 9.0)
    return u


def before_it_is_carried_on(u: Tensor) -> Tensor:
    u[..., 1] = 7.0
    return torch.cat([F.relu(u)[:, :2], u[:, 2:]], 1)


def with_others(u: Tensor) -> Tensor:
    torch._foreach_add_([u[..., 0]], 1.0)
    return u


def after_a_break(u: Tensor) -> Tensor:
    v = u[..., 0]
    torch._dynamo.graph_break()
    v[:] = 3.0
    return u


def new_data(u: Tensor) -> Tensor:
    u.data = torch.arange(u.numel(), dtype=u.dtype).view(u.shape)
    return u


def as_an_array(u: Tensor) -> Tensor:
    u.numpy()[..., 0] = 3.0
    return u


EXPORTED = [assigned, masked, through_a_view, through_a_row, through_a_chunk, through_an_attribute,
                  by_an_operator, before_it_is_carried_on, with_others]  # fmt: skip
WRITES = [*EXPORTED, through_data, after_a_break, new_data, as_an_array]


class Written(nn.Module):
    """A resize and a convolution, and in training something between."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        u = F.interpolate(x, scale_factor=2)
        return self.conv(self.write(u) if self.training else u)


# torch 2.6's dynamo does not trace membership in a frozenset: strict export raises there
TRACED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)


def converted(write: Callable[[Tensor], Tensor], x: Tensor) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Written(write).double()
    after = pixelize.convert(model.eval(), "dcl", example_inputs=x)
    return model.train(), after.train()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("write", WRITES)
def test_compiled_and_eager(write, x):
    model, after = converted(write, x)
    torch._dynamo.reset()
    with torch.no_grad():
        for call in (after, torch.compile(after, backend="eager")):
            assert relative_error(model(x), call(x)) < 1e-12


@pytest.mark.parametrize("strict", [False, True] if TRACED else [False])
@pytest.mark.parametrize("write", EXPORTED)
def test_exported(write, strict, x):
    model, after = converted(write, x)
    with torch.no_grad():
        program = torch.export.export(after, (x,), strict=strict)
        assert relative_error(model(x), program.module()(x)) < 1e-12


@pytest.mark.skipif(not TRACED, reason="torch 2.6 cannot export it strictly")
def test_what_is_not_written_to_is_still_known(x):
    """Compiled, a PixelDCL in a resize-convolution's place runs: it raises where the picture is not known to
    be resized."""
    model, _ = converted(lambda u: F.relu(u, inplace=True), x)
    fast = pixelize.convert(model.eval(), "pixeldcl", example_inputs=x).train()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(fast, backend="eager", fullgraph=True)(x)
        torch.export.export(fast, (x,), strict=True)
        torch.export.export(fast, (x,), strict=False)
