"""The phases of an up-sampler: how they answer what they are really given, and what other order they might
have been meant to have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, permutations, product
from typing import Any

import torch
from torch import Tensor

from pixelize.algebra.polyphase import axis_phases
from pixelize.diagnosis.upsampling import Call
from pixelize.measure.decibels import decibels
from pixelize.rewrites.state.precision import float64

Order = Callable[[Call], Tensor]
"""The output that an up-sampler would have had with its sub-kernels in another order."""


BETTER = 2.0
"""How many times less rough an output must be in another order of its phases for that order to be right."""


class PhaseAnswers:
    """How the phases of an up-sampler's output answer constants and steps, streamed over its runs.

    *Constant*: the mean of each phase and channel over pictures and places, m_a. With the discrete Fourier
    transform over phases, the power of what is not the mean phase over that which is, in dB.

    *Step*: let b be the mean of a block's phases and g_i its central difference along axis i. Phase a lies
    p_i = (a_i - (s_i - 1)/2) / s_i blocks from the block's middle, so that interpolation gives it
    b + sum of p_i g_i. The mean square of what it is beside that is the *roughness*, in units of what
    repetition (b alone) has: 0 interpolates, 1 repeats, 4 is back to front.
    """

    def __init__(self, stride: tuple[int, ...]) -> None:
        self.stride = stride
        self.sums: Tensor | float = 0.0
        self.places = 0
        self.rough = self.repeated = 0.0

    def add(self, output: Tensor) -> None:
        """Takes in an output (N, C, *size)."""
        n = len(self.stride)
        y = output[_first_blocks(output, self.stride)].detach().cpu().double()
        for axis in reversed(range(n)):
            y = y.unflatten(2 + axis, (-1, self.stride[axis]))
        y = y.permute(*range(3, 3 + 2 * n, 2), 0, 1, *range(2, 2 + 2 * n, 2))  # (*stride, N, C, *blocks)
        self.sums = self.sums + y.sum((n, *range(n + 2, 2 * n + 2)))
        block = y.mean(tuple(range(n)))
        self.places += block[:, 0].numel()
        middle = slice(1, -1)
        inner: Any = (..., *(middle,) * n)
        slopes = []
        for axis in range(n):
            before, after = (middle,) * axis, (middle,) * (n - 1 - axis)
            on: Any = (..., *before, slice(2, None), *after)
            back: Any = (..., *before, slice(None, -2), *after)
            slopes.append((block[on] - block[back]) / 2)
        for phase in product(*map(range, self.stride)):
            interpolated = torch.zeros_like(slopes[0])
            for a, s, slope in zip(phase, self.stride, slopes, strict=True):
                interpolated += (a - (s - 1) / 2) / s * slope
            beside = y[phase][inner] - block[inner]
            self.rough += float((beside - interpolated).square().sum())
            self.repeated += float(interpolated.square().sum())

    @property
    def constant(self) -> float:
        """Decibels."""
        mean = torch.as_tensor(self.sums) / max(1, self.places)
        phases = tuple(range(len(self.stride)))
        level = mean.mean(phases)
        uneven = (mean - level).square().mean(phases).sum()
        return decibels(float(uneven / level.square().sum().clamp_min(1e-300)))

    @property
    def roughness(self) -> float:
        """In units of what repetition has."""
        return self.rough / (self.repeated + 1e-300)


def right_order(call: Call) -> str | None:
    """The order of its phases in which an up-sampler's output is far smoother than it is, if there is one."""
    least = _roughness(call.output, call.place.stride) / BETTER
    best = None
    for name, order in orders(call):
        rough = _roughness(order(call), call.place.stride)
        if rough < least:
            best, least = name, rough
    return best


def _roughness(output: Tensor, stride: tuple[int, ...]) -> float:
    answers = PhaseAnswers(stride)
    answers.add(output)
    return answers.rough / (float(float64(output).var()) + 1e-300)


def orders(call: Call) -> Iterator[tuple[str, Order]]:
    """Every other order of an up-sampler's sub-kernels that a mistake in porting may have made of it.

    Of four phases all permutations; of more, the reversals and rolls of each axis and exchanges of two. For
    a transposed convolution also its kernel mirrored; for a shuffle the channels counted the other way.
    """
    s = call.place.stride
    phases = list(product(*map(range, s)))
    for name, order in _permutations(phases, s):
        if call.place.kind == "conv_transpose":
            if _permuted_kernel(call, order) is not None:
                yield name, lambda c, order=order: _with_weight(c, _permuted_kernel(c, order))  # type: ignore[misc]
        else:
            yield name, lambda c, order=order: _permuted_output(c.output, s, order)  # type: ignore[misc]
    if call.place.kind == "conv_transpose":
        for name, axes in _mirrors(len(s)):
            yield f"kernel {name}", lambda c, axes=axes: _with_weight(c, c.args[1].flip(axes))  # type: ignore[misc]
        if len(s) == 2 and call.args[1].shape[2] == call.args[1].shape[3] and s[0] == s[1]:
            yield "kernel transposed", lambda c: _with_weight(c, c.args[1].transpose(2, 3))
    if call.place.kind == "pixel_shuffle":
        yield "channels counted the other way", _other_channels


def _mirrors(axes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """By name, the axes of a kernel that may be back to front."""
    along = {1: ("",), 2: (" down", " across"), 3: (" through", " down", " across")}[axes]
    for axis, name in enumerate(along):
        yield f"mirrored{name}", (2 + axis,)
    if axes == 2:
        yield "turned by 180 degrees", (2, 3)
    elif axes == 3:
        yield "mirrored along all axes", (2, 3, 4)


def _permutations(
    phases: list[tuple[int, ...]], s: tuple[int, ...]
) -> Iterator[tuple[str, dict[tuple[int, ...], tuple[int, ...]]]]:
    if len(phases) <= 4:
        for order in permutations(phases):
            if list(order) != phases:
                name = " ".join("".join(map(str, phase)) for phase in order)
                yield f"phases in the order {name}", dict(zip(phases, order, strict=True))
        return
    names = ("planes", "rows", "columns")[-len(s) :]
    told = [f"{name} of phases" for name in names] if len(s) > 1 else ["phases"]
    every = " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) + " of phases"
    for axis, name in enumerate(told):
        for how, start, step in (("reversed", s[axis] - 1, -1), ("rolled back", 1, 1), ("rolled on", -1, 1)):
            yield (
                f"{name} {how}",
                {p: (*p[:axis], (start + step * p[axis]) % s[axis], *p[axis + 1 :]) for p in phases},
            )
    if len(s) > 1:
        yield f"{every} reversed", {p: tuple(n - 1 - a for a, n in zip(p, s, strict=True)) for p in phases}
    for i, j in combinations(range(len(s)), 2):
        if s[i] == s[j]:
            swap = {i: j, j: i}
            yield (
                f"{names[i]} and {names[j]} of phases exchanged",
                {p: tuple(p[swap.get(a, a)] for a in range(len(p))) for p in phases},
            )


def _first_blocks(y: Tensor, s: tuple[int, ...]) -> Any:
    """All but what the last whole block leaves over."""
    return (..., *(slice(n // k * k) for n, k in zip(y.shape[2:], s, strict=True)))


def _permuted_output(y: Tensor, s: tuple[int, ...], order: dict[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    """Phase a of the result is phase order[a] of ``y``; what the last whole block leaves over stays."""
    made = y.clone()
    whole = [n // k * k for n, k in zip(y.shape[2:], s, strict=True)]
    for into, of in order.items():
        to: Any
        source: Any
        to, source = (
            (..., *(slice(a, n, k) for a, n, k in zip(phase, whole, s, strict=True))) for phase in (into, of)
        )
        made[to] = y[source]
    return made


def _permuted_kernel(call: Call, order: dict[tuple[int, ...], tuple[int, ...]]) -> Tensor | None:
    """The weight in which phase a has the taps of phase order[a], in their order; None where they differ in
    number."""
    weight, stride = call.args[1], call.place.stride
    padding, dilation = (_each(call.args[index], len(stride)) for index in (4, 5))
    axes = [
        axis_phases(k, s, p, d)
        for k, s, p, d in zip(weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    made = weight.clone()
    for into, of in order.items():
        taps = [(axis[a].taps, axis[b].taps) for axis, a, b in zip(axes, into, of, strict=True)]
        if any(len(mine) != len(theirs) for mine, theirs in taps):
            return None
        for pairs in product(*(zip(mine, theirs, strict=True) for mine, theirs in taps)):
            to: Any = (..., *(i for i, _ in pairs))
            source: Any = (..., *(k for _, k in pairs))
            made[to] = weight[source]
    return made


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if len(value) == axes else (value[0],) * axes


def _with_weight(call: Call, weight: Tensor | None) -> Tensor:
    assert weight is not None
    return call.again(call.args[0], weight, *call.args[2:])


def _other_channels(call: Call) -> Tensor:
    x, r = call.args[0], call.args[1]
    return call.again(x.unflatten(1, (r * r, -1)).transpose(1, 2).flatten(1, 2), r)
