"""The weights of an operator in coordinates in which every direction costs about the same.

A change D of the weights of one output changes what the operator makes there by D applied to the features f
that the output reads: on average by D^T E[f f^T] D. With the Cholesky factor E[f f^T] = L L^T and
D = L^-T U that is |U|^2. Output channels that matter less to the picture may change more: column o of U is
divided by the root mean square r_o of the picture's gradient to channel o.

For a convolution the features are a window of the input, for a linear map the input itself; a transposed
convolution has features of its own for each phase of its output: the inputs that the phase's taps read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from pixelize.algebra.least_squares import inverse_root
from pixelize.refit.calls import Call
from pixelize.rewrites.state.precision import float64

Offset = tuple[int, ...]

_ROWS_PER_FEATURE = 8
_ROWS = 2048, 12288


@dataclass(frozen=True)
class Tap:
    """One tap: its place in the kernel, the output phase it belongs to, and the input it reads, relative to
    the phase's own place."""

    place: tuple[int, ...]
    phase: Offset
    offset: Offset


def taps_of(call: Call | _ConvTransposeNd) -> list[Tap]:
    """The taps of an operator or a layer by phase.

    Transposed: output ``o = s i - p + d t`` is place ``m`` of phase ``a`` for ``o = s m + a``, and reads
    ``x[m - q]``; the offset is -q. Else there is one phase, and the offset is ``d t - p``.
    """
    found = []
    transposed = isinstance(call, nn.Module) or call.kind == "transposed"
    kernel = call.kernel_size if isinstance(call, nn.Module) else call.kernel
    padding: Any = call.padding
    for place in product(*map(range, kernel)):
        at = [d * t - int(p) for d, t, p in zip(call.dilation, place, padding, strict=True)]
        if not transposed:
            found.append(Tap(place, (0,) * len(place), tuple(at)))
            continue
        phase = tuple(v % s for v, s in zip(at, call.stride, strict=True))
        offset = tuple((a - v) // s for v, a, s in zip(at, phase, call.stride, strict=True))
        found.append(Tap(place, phase, offset))
    return sorted(found, key=lambda tap: (tap.phase, tap.offset))


class Coordinates(Protocol):
    """A parameter as a function of a leaf ``u``, which is zero at first: there the parameter is as it was."""

    u: Tensor

    def balance(self, gradient: Tensor) -> None:
        """Takes the root mean square gradient of the picture to ``u`` into the scale of ``u``."""

    def value(self) -> Tensor: ...


class ScaledParameter:
    """Any parameter, for what has no features to whiten: one scale for all of it."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter.detach()
        self.scale = self.parameter.new_ones(())
        self.u = torch.zeros_like(self.parameter, requires_grad=True)

    def balance(self, gradient: Tensor) -> None:
        self.scale = 1 / gradient.square().mean().sqrt().clamp_min(1e-6)

    def value(self) -> Tensor:
        return self.parameter + self.scale * self.u


Factor = Callable[[Tensor], Tensor]
"""(groups, taps * ins, outs) of ``u`` to the same of weights, for one phase."""


Within = Callable[[Tensor], Tensor]


class WhitenedWeights:
    """The weights of one operator as a function of what is to be found, ``u`` (groups, taps of all phases
    times inputs of a group, outputs of a group).

    Args:
        parameter: of the shape of the operator's weight, or what that is computed from.
        calls: runs of the operator, to learn from what it reads.
        ridge: added to the features' second moments, as a share of their mean diagonal.
        largest: features that are factored exactly; more are factored as channels times taps.
        within: takes from a change (groups, taps in the order of :func:`taps_of`, inputs, outputs) what it
            may not have.
    """

    def __init__(
        self,
        parameter: Tensor,
        calls: list[Call],
        largest: int,
        ridge: float = 1e-3,
        within: Within | None = None,
    ) -> None:
        call = calls[0]
        self.within = within
        self.parameter, self.kind, self.groups = parameter.detach(), call.kind, call.groups
        self.taps = taps_of(call)
        self.kernel = call.kernel
        shape = parameter.shape
        self.ins = shape[0] // self.groups if call.kind == "transposed" else shape[1]
        self.outs = shape[1] if call.kind == "transposed" else shape[0] // self.groups
        phases = sorted({tap.phase for tap in self.taps})
        generator = torch.Generator().manual_seed(0)
        self.factors: list[Factor] = []
        self.sizes: list[int] = []
        for phase in phases:
            taps = [tap for tap in self.taps if tap.phase == phase]
            size = len(taps) * self.ins
            rows = min(max(_ROWS[0], _ROWS_PER_FEATURE * size), _ROWS[1])
            features = torch.cat(
                [read_by(c, taps, -(-rows // len(calls)), generator) for c in calls]
            )  # rows, taps, groups, ins
            self.sizes.append(size)
            self.factors.append(_factor(features, largest, ridge, self.parameter))
        like = self.parameter
        self.scale = like.new_ones(self.groups, 1, self.outs)
        self.u = like.new_zeros(self.groups, sum(self.sizes), self.outs).requires_grad_()

    def balance(self, gradient: Tensor) -> None:
        size = gradient.square().mean(1, keepdim=True).sqrt()
        self.scale = 1 / size.clamp_min(0.03 * size.max().item() + 1e-12)

    def value(self) -> Tensor:
        """The parameter, with a gradient to ``u``."""
        parts = self.u.split(self.sizes, 1)
        scaled = [factor(u * self.scale) for factor, u in zip(self.factors, parts, strict=True)]
        change = torch.cat(scaled, 1).unflatten(1, (len(self.taps), self.ins))  # groups, taps, ins, outs
        if self.within is not None:
            change = self.within(change)
        places = {tap.place: n for n, tap in enumerate(self.taps)}
        change = change[:, [places[at] for at in product(*(range(k) for k in self.kernel))]]
        order = (0, 2, 3, 1) if self.kind == "transposed" else (0, 3, 2, 1)
        change = change.permute(order).flatten(0, 1)  # channels of the first axis, of the second, taps
        return self.parameter + change.reshape(self.parameter.shape)


def read_by(call: Call, taps: list[Tap], rows: int, generator: torch.Generator) -> Tensor:
    """(rows, taps, groups, ins): what the taps read at places drawn at random; zero outside the input."""
    x = call.input.detach().float()
    if call.kind == "linear":
        x = x.reshape(-1, x.shape[-1])
        return x[torch.randint(len(x), (rows,), generator=generator).to(x.device)][:, None, None]
    stride = (1,) * len(call.kernel) if call.kind == "transposed" else call.stride
    sizes = list(x.shape[2:])
    made = [
        n if call.kind == "transposed" else max(1, (n + 2 * p - d * (k - 1) - 1) // s + 1)
        for n, p, d, k, s in zip(sizes, call.padding, call.dilation, call.kernel, call.stride, strict=True)
    ]
    sample = torch.randint(len(x), (rows,), generator=generator).to(x.device)
    at = [torch.randint(n, (rows,), generator=generator).to(x.device) for n in made]
    read = []
    for tap in taps:
        places = [s * a + o for s, a, o in zip(stride, at, tap.offset, strict=True)]
        inside = torch.ones(rows, dtype=torch.bool, device=x.device)
        for place, n in zip(places, sizes, strict=True):
            inside &= (place >= 0) & (place < n)
        places = [place.clamp(0, n - 1) for place, n in zip(places, sizes, strict=True)]
        index: Any = (sample, slice(None), *places)
        read.append(x[index] * inside[:, None])
    return torch.stack(read, 1).unflatten(-1, (call.groups, -1))


def _factor(features: Tensor, largest: int, ridge: float, like: Tensor) -> Factor:
    """L^-T of the features' second moments: exact, or, for many, that of the channels times that of the
    taps."""
    rows, taps, groups, ins = features.shape
    if taps * ins <= largest:
        flat = features.permute(2, 0, 1, 3).reshape(groups, rows, taps * ins)
        root = inverse_root(float64(flat.mT @ flat / rows), ridge, 1e-12).to(like)
        return lambda u: root @ u
    channels = features.permute(2, 0, 1, 3).reshape(groups, rows * taps, ins)
    moment = float64(channels.mT @ channels / (rows * taps))
    across = float64(torch.einsum("rtgi,rsgi->gts", features, features)) / rows
    across = across / (across.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1e-30)
    of_channels, of_taps = (inverse_root(m, ridge, 1e-12).to(like) for m in (moment, across))

    def apply(u: Tensor) -> Tensor:
        u = u.unflatten(1, (taps, ins))
        return torch.einsum("gst,gji,gtio->gsjo", of_taps, of_channels, u).flatten(1, 2)

    return apply
