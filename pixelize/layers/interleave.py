"""Periodical shuffling, eq. 1 of Gao et al., *Pixel Deconvolutional Networks*: phases to pixels, and back.

In eager execution both are autograd functions that read and write every value once, in the memory format of
the output; in a graph (compiled, exported, traced) they are ordinary operators, which a compiler fuses and
another runtime knows, and so they are under torch.func's transforms and in forward mode, which know how to
transform ordinary operators.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from operator import mod
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pixelize.algebra.polyphase import Phase, Size, all_phases, last_axes, padded
from pixelize.rewrites.state.capturing import capturing

Layout = tuple[Phase, ...]
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
"""The memory format in which the channels lie side by side, by the number of axes; a waveform has none."""


def split_phases(x: Tensor, stride: Size) -> dict[Phase, Tensor]:
    """The phases of ``x`` (..., s_1 n_1, .., s_n n_n) as views (..., n_1, .., n_n)."""
    if max(stride) == 1:
        return {(0,) * len(stride): x}
    views = (
        _Split.apply(x, stride)
        if x.requires_grad and not (in_graph() or _transformed())
        else _split(x, stride)
    )
    return dict(zip(all_phases(stride), views, strict=True))


def interleave(
    phases: Mapping[Phase, Tensor | Sequence[Tensor]],
    stride: Size,
    *,
    size: Size | None = None,
    bias: Tensor | None = None,
    channels_last: bool | None = None,
) -> Tensor:
    """Periodical shuffling (eq. 1): phases (..., C, *grid) to (..., C, *size).

    Args:
        phases: for each phase its map, or several that are added up.
        size: that of the output, by default stride times grid; what lies beyond is dropped.
        bias: (C,), added to every phase.
        channels_last: the memory format of a batch, by default that of the first map.
    """
    maps = {phase: [f] if isinstance(f, Tensor) else list(f) for phase, f in phases.items()}
    layout = tuple(phase for phase, terms in maps.items() for _ in terms)
    parts = [part for terms in maps.values() for part in terms]
    first = parts[0]
    n = len(stride)
    if size is None:
        size = tuple(s * g for s, g in zip(stride, first.shape[-n:], strict=True))
    if channels_last is None:
        channels_last = is_channels_last(first, n)
    if bias is not None:
        bias = bias.to(first.dtype)
    if in_graph() or _transformed():
        run: Any = _interleave
    elif _is_batched(parts):
        run, channels_last = _interleave, False
    elif any(type(f) not in (Tensor, Parameter) for f in parts):  # what a subclass is made of it knows itself
        run = _interleave
    else:
        run = _Interleave.apply if torch.is_grad_enabled() else _written
    return run(stride, size, channels_last, layout, bias, *parts)


def is_channels_last(x: Tensor, n: int) -> bool:
    """Whether the channels of ``x``, a batch of maps with ``n`` axes, lie side by side; it may be a strided
    view.
    """
    # under a transform there may be axes that do not show
    batch = n in CHANNELS_LAST and x.dim() == n + 2 and (in_graph() or not _transformed())
    return batch and x.shape[1] > 1 and x.stride(1) == 1 and x.stride(-1) != 1


def add_up(maps: Sequence[Tensor]) -> Tensor:
    """The sum of several maps, or the one map there is."""
    total = maps[0]
    for f in maps[1:]:
        total = total + f
    return total


def in_graph() -> bool:
    """Whether a compiler, an exporter or a tracer looks on: sizes may not be known, nor be asked for."""
    return capturing() or torch.jit.is_tracing()


def _transformed() -> bool:
    # whether the operators that run are seen by more than autograd's backward mode
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _is_batched(maps: Sequence[Tensor]) -> bool:
    # by autograd's own vectorisation (``is_grads_batched``, ``jacobian(vectorize=True)``), which
    # is older than torch.func's and knows neither ``unflatten`` nor writing into what is not batched
    return any(torch._C._functorch.is_legacy_batchedtensor(f) for f in maps)


def _split(x: Tensor, stride: Size) -> tuple[Tensor, ...]:
    # (..., s_h h, s_w w) seen as (..., h, s_h, w, s_w) and taken apart: fewer calls than with slices.
    # In a graph the sizes may not be known.
    n = len(stride)
    if max(stride) == 1:
        return (x,)
    if in_graph() or any(map(mod, x.shape[-n:], stride)) or _is_batched([x]):
        return tuple(x[last_axes(slice(a, None, s) for a, s in zip(p, stride, strict=True))]
                     for p in all_phases(stride))  # fmt: skip
    for axis in range(n):
        x = x.unflatten(-1 - 2 * axis, (x.shape[-1 - 2 * axis] // stride[-1 - axis], stride[-1 - axis]))
    views: tuple[Tensor, ...] = (x,)
    for axis in range(1 - 2 * n, 0, 2):
        views = tuple(view for v in views for view in v.unbind(axis))
    return views


def _interleave(
    stride: Size, size: Size, channels_last: bool, layout: Layout, bias: Tensor | None, *parts: Tensor
) -> Tensor:
    terms: dict[Phase, list[Tensor]] = {}
    for phase, part in zip(layout, parts, strict=True):
        terms.setdefault(phase, []).append(part)
    n = len(stride)
    stacks = [add_up(terms[phase]) for phase in all_phases(stride)]
    for axis in range(n):  # the last axis first: its phases lie side by side
        s = stride[-1 - axis]
        stacks = [torch.stack(stacks[i : i + s], -1 - 2 * axis) for i in range(0, len(stacks), s)]
    grid = parts[0].shape[-n:]
    y = stacks[0].reshape(*parts[0].shape[:-n], *(s * g for s, g in zip(stride, grid, strict=True)))
    if in_graph() or tuple(y.shape[-n:]) != size:
        for axis, length in enumerate(size, -n):
            y = y.narrow(axis, 0, length)
    if bias is not None:
        y = y + _column(bias, n)
    return y.contiguous(memory_format=CHANNELS_LAST[n]) if channels_last else y


def _written(
    stride: Size, size: Size, channels_last: bool, layout: Layout, bias: Tensor | None, *parts: Tensor
) -> Tensor:
    n = len(stride)
    shape = (*parts[0].shape[:-n], *size)
    memory_format = CHANNELS_LAST[n] if channels_last else torch.contiguous_format
    y = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=memory_format)
    places = dict(zip(all_phases(stride), _split(y, stride), strict=True))
    column = [] if bias is None else [_column(bias, n)]
    for phase in dict.fromkeys(layout):
        place = places[phase]
        terms = [part for at, part in zip(layout, parts, strict=True) if at == phase]
        grid = place.shape[-n:]
        if grid != terms[0].shape[-n:]:
            terms = [part[last_axes(map(slice, grid))] for part in terms]
        terms += column
        if len(terms) == 1:
            place.copy_(terms[0])
        else:  # the first may be strided, like the place: it is read and the place written once
            torch.add(terms[0], add_up(terms[1:]), out=place)
    return y


def _column(bias: Tensor, n: int) -> Tensor:
    return bias[last_axes((None,) * n)]


def _signed(forward: Any) -> Any:
    # autograd asks for the signature in every call, and working it out takes as long as a small convolution
    forward.__signature__ = inspect.signature(forward)
    return forward


class _Split(torch.autograd.Function):
    # Plain slicing would do, but autograd makes a full-sized tensor of zeros for the gradient of each slice.

    @staticmethod
    @_signed
    def forward(x: Tensor, stride: Size) -> tuple[Tensor, ...]:
        return _split(x, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.stride, ctx.channels_last = inputs[1], is_channels_last(inputs[0], len(inputs[1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        phases = dict(zip(all_phases(ctx.stride), grads, strict=True))
        return interleave(phases, ctx.stride, channels_last=ctx.channels_last), None


class _Interleave(torch.autograd.Function):
    # Each phase is written into its place in the output; autograd would record such writes as a chain of
    # full-sized copies.

    @staticmethod
    @_signed
    def forward(
        stride: Size, size: Size, channels_last: bool, layout: Layout, bias: Tensor | None, *parts: Tensor
    ) -> Tensor:
        return _written(stride, size, channels_last, layout, bias, *parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.arguments = inputs[:4]
        ctx.grid = inputs[5].shape[-len(inputs[0]) :]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        stride, _, _, layout = ctx.arguments
        n = len(stride)
        views = dict(zip(all_phases(stride), _split(g, stride), strict=True))
        grads = {}
        for phase in layout:
            view = views[phase]
            missing = [a - b for a, b in zip(ctx.grid, view.shape[-n:], strict=True)]
            grads[phase] = padded(view, (0,) * n, missing) if any(missing) else view
        others = [d for d in range(g.dim()) if d != g.dim() - n - 1]
        bias = g.sum(others) if ctx.needs_input_grad[4] else None
        return None, None, None, None, bias, *(grads[phase] for phase in layout)
