"""The phases of an up-sampler: how they answer what they are really given, and what other order they might
have been meant to have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

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

    *Step*: let b be the mean of a block's phases and g_v, g_h its central differences down and across. Phase
    (a, c) lies p_a = (a - (s-1)/2) / s blocks below the block's middle and p_c to its right, so that
    interpolation gives it b + p_a g_v + p_c g_h. The mean square of what it is beside that is the
    *roughness*, in units of what repetition (b alone) has: 0 interpolates, 1 repeats, 4 is back to front.
    """

    def __init__(self, stride: tuple[int, int]) -> None:
        self.stride = stride
        self.sums: Tensor | float = 0.0
        self.places = 0
        self.rough = self.repeated = 0.0

    def add(self, output: Tensor) -> None:
        """Takes in an output (N, C, H, W)."""
        rows, columns = (n // s for n, s in zip(output.shape[-2:], self.stride, strict=True))
        y = output[..., : rows * self.stride[0], : columns * self.stride[1]].detach().cpu().double()
        y = y.unflatten(-1, (columns, self.stride[1])).unflatten(-3, (rows, self.stride[0]))
        y = y.permute(3, 5, 0, 1, 2, 4)  # (s_h, s_w, N, C, rows, columns)
        self.sums = self.sums + y.sum((2, 4, 5))
        self.places += y[0, 0, :, 0].numel()
        block = y.mean((0, 1))
        down = (block[..., 2:, 1:-1] - block[..., :-2, 1:-1]) / 2
        across = (block[..., 1:-1, 2:] - block[..., 1:-1, :-2]) / 2
        for a, row in enumerate(y):
            for c, phase in enumerate(row):
                p, q = ((k - (s - 1) / 2) / s for k, s in zip((a, c), self.stride, strict=True))
                beside = phase[..., 1:-1, 1:-1] - block[..., 1:-1, 1:-1]
                self.rough += float((beside - p * down - q * across).square().sum())
                self.repeated += float((p * down + q * across).square().sum())

    @property
    def constant(self) -> float:
        """Decibels."""
        mean = torch.as_tensor(self.sums) / max(1, self.places)
        level = mean.mean((0, 1))
        uneven = (mean - level).square().mean((0, 1)).sum()
        return decibels(float(uneven / level.square().sum().clamp_min(1e-300)))

    @property
    def roughness(self) -> float:
        """In units of what repetition has."""
        return self.rough / (self.repeated + 1e-300)


def right_order(call: Call) -> str | None:
    """The order of its phases in which an up-sampler's output is far smoother than it is, if there is one."""
    least = _roughness(call.output, call.place.stride) / BETTER
    found = None
    for name, order in orders(call):
        rough = _roughness(order(call), call.place.stride)
        if rough < least:
            found, least = name, rough
    return found


def _roughness(output: Tensor, stride: tuple[int, int]) -> float:
    answers = PhaseAnswers(stride)
    answers.add(output)
    return answers.rough / (float(float64(output).var()) + 1e-300)


def orders(call: Call) -> Iterator[tuple[str, Order]]:
    """Every other order of an up-sampler's sub-kernels that a mistake in porting may have made of it.

    Of four phases all permutations; of more, the reversals and rolls of each axis and their exchange. For a
    transposed convolution also its kernel mirrored; for a shuffle the channels counted the other way.
    """
    s = call.place.stride
    phases = [(a, b) for a in range(s[0]) for b in range(s[1])]
    for name, order in _permutations(phases, s):
        if call.place.kind == "conv_transpose":
            if _permuted_kernel(call, order) is not None:
                yield name, lambda c, order=order: _with_weight(c, _permuted_kernel(c, order))  # type: ignore[misc]
        else:
            yield name, lambda c, order=order: _permuted_output(c.output, s, order)  # type: ignore[misc]
    if call.place.kind == "conv_transpose":
        for name, axes in (
            ("mirrored down", (2,)),
            ("mirrored across", (3,)),
            ("turned by 180 degrees", (2, 3)),
        ):
            yield f"kernel {name}", lambda c, axes=axes: _with_weight(c, c.args[1].flip(axes))  # type: ignore[misc]
        if call.args[1].shape[2] == call.args[1].shape[3] and s[0] == s[1]:
            yield "kernel transposed", lambda c: _with_weight(c, c.args[1].transpose(2, 3))
    if call.place.kind == "pixel_shuffle":
        yield "channels counted the other way", _other_channels


def _permutations(
    phases: list[tuple[int, int]], s: tuple[int, int]
) -> Iterator[tuple[str, dict[tuple[int, int], tuple[int, int]]]]:
    if len(phases) <= 4:
        for order in permutations(phases):
            if list(order) != phases:
                name = " ".join(f"{a}{b}" for a, b in order)
                yield f"phases in the order {name}", dict(zip(phases, order, strict=True))
        return
    moves: dict[str, Callable[[int, int], tuple[int, int]]] = {
        "rows of phases reversed": lambda a, b: (s[0] - 1 - a, b),
        "columns of phases reversed": lambda a, b: (a, s[1] - 1 - b),
        "rows and columns of phases reversed": lambda a, b: (s[0] - 1 - a, s[1] - 1 - b),
        "rows of phases rolled back": lambda a, b: ((a + 1) % s[0], b),
        "rows of phases rolled on": lambda a, b: ((a - 1) % s[0], b),
        "columns of phases rolled back": lambda a, b: (a, (b + 1) % s[1]),
        "columns of phases rolled on": lambda a, b: (a, (b - 1) % s[1]),
    }
    if s[0] == s[1]:
        moves["rows and columns of phases exchanged"] = lambda a, b: (b, a)
    for name, move in moves.items():
        yield name, {phase: move(*phase) for phase in phases}


def _permuted_output(y: Tensor, s: tuple[int, int], order: dict[tuple[int, int], tuple[int, int]]) -> Tensor:
    """Phase a of the result is phase order[a] of ``y``; what the last whole block leaves over stays."""
    made = y.clone()
    rows, columns = (n // k * k for n, k in zip(y.shape[-2:], s, strict=True))
    for (a, b), (c, d) in order.items():
        made[..., a : rows : s[0], b : columns : s[1]] = y[..., c : rows : s[0], d : columns : s[1]]
    return made


def _permuted_kernel(call: Call, order: dict[tuple[int, int], tuple[int, int]]) -> Tensor | None:
    """The weight in which phase a has the taps of phase order[a], in their order; None where they differ in
    number."""
    weight, stride, padding, dilation = call.args[1], call.place.stride, _pair(call, 4), _pair(call, 5)
    axes = [axis_phases(weight.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    made = weight.clone()
    for (a, b), (c, d) in order.items():
        into, of = (axes[0][a], axes[1][b]), (axes[0][c], axes[1][d])
        if [len(x.taps) for x in into] != [len(x.taps) for x in of]:
            return None
        for i, k in zip(into[0].taps, of[0].taps, strict=True):
            for j, m in zip(into[1].taps, of[1].taps, strict=True):
                made[..., i, j] = weight[..., k, m]
    return made


def _pair(call: Call, index: int) -> tuple[int, int]:
    value = call.args[index]
    return (value[0], value[-1])


def _with_weight(call: Call, weight: Tensor | None) -> Tensor:
    assert weight is not None
    return call.again(call.args[0], weight, *call.args[2:])


def _other_channels(call: Call) -> Tensor:
    x, r = call.args[0], call.args[1]
    return call.again(x.unflatten(1, (r * r, -1)).transpose(1, 2).flatten(1, 2), r)
