"""Periodical shuffling, eq. 1 of Gao et al., *Pixel Deconvolutional Networks*: phases to pixels, and back.

In eager execution both are autograd functions that read and write every value once, in the memory format of
the output; in a graph (compiled, exported, traced) they are ordinary operators, which a compiler fuses and
another runtime knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelize.algebra.polyphase import Phase

Pair = tuple[int, int]
Layout = tuple[Phase, ...]


def split_phases(x: Tensor, stride: Pair) -> dict[Phase, Tensor]:
    """The phases of ``x`` (..., s_h*h, s_w*w) as views (..., h, w)."""
    views = _Split.apply(x, stride) if x.requires_grad and not _in_graph() else _split(x, stride)
    return dict(zip(_all_phases(stride), views, strict=True))


def interleave(
    phases: Mapping[Phase, Tensor | Sequence[Tensor]],
    stride: Pair,
    *,
    size: Pair | None = None,
    bias: Tensor | None = None,
    channels_last: bool | None = None,
) -> Tensor:
    """Periodical shuffling (eq. 1): phases (..., C, h, w) to (..., C, H, W).

    Args:
        phases: for each phase its map, or several that are added up.
        size: (H, W), by default (s_h*h, s_w*w); what lies beyond is dropped.
        bias: (C,), added to every phase.
        channels_last: the memory format of a 4-dimensional output, by default that of the first map.
    """
    maps = {phase: [f] if isinstance(f, Tensor) else list(f) for phase, f in phases.items()}
    layout = tuple(phase for phase, terms in maps.items() for _ in terms)
    parts = [part for terms in maps.values() for part in terms]
    first = parts[0]
    if size is None:
        size = (stride[0] * first.shape[-2], stride[1] * first.shape[-1])
    if channels_last is None:
        channels_last = is_channels_last(first)
    if bias is not None:
        bias = bias.to(first.dtype)
    run = _interleave if _in_graph() else _written if _is_plain() else _Interleave.apply
    return run(stride, size, channels_last, layout, bias, *parts)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``x`` lie side by side; ``x`` may be a strided view."""
    return x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) != 1


def add_up(maps: Sequence[Tensor]) -> Tensor:
    """The sum of several maps, or the one map there is."""
    total = maps[0]
    for f in maps[1:]:
        total = total + f
    return total


def _in_graph() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_plain() -> bool:
    # nothing is to be differentiated or vectorised: an autograd function would only take time
    return not (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _all_phases(stride: Pair) -> list[Phase]:
    return [(a, b) for a in range(stride[0]) for b in range(stride[1])]


def _split(x: Tensor, stride: Pair) -> tuple[Tensor, ...]:
    # (..., s_h h, s_w w) seen as (..., h, s_h, w, s_w) and taken apart: fewer calls than with slices.
    # In a graph the sizes may not be known.
    (sh, sw), (height, width) = stride, x.shape[-2:]
    if _in_graph() or height % sh or width % sw:
        return tuple(x[..., a::sh, b::sw] for a, b in _all_phases(stride))
    apart = x.unflatten(-1, (-1, sw)).unflatten(-3, (-1, sh))
    return tuple(view for rows in apart.unbind(-3) for view in rows.unbind(-1))


def _interleave(
    stride: Pair, size: Pair, channels_last: bool, layout: Layout, bias: Tensor | None, *parts: Tensor
) -> Tensor:
    terms: dict[Phase, list[Tensor]] = {}
    for phase, part in zip(layout, parts, strict=True):
        terms.setdefault(phase, []).append(part)
    sums = {phase: add_up(maps) for phase, maps in terms.items()}
    h, w = parts[0].shape[-2:]
    rows = [torch.stack([sums[a, b] for b in range(stride[1])], -1) for a in range(stride[0])]
    y = torch.stack(rows, -3).reshape(*parts[0].shape[:-2], h * stride[0], w * stride[1])
    y = y[..., : size[0], : size[1]]
    if bias is not None:
        y = y + bias[..., None, None]
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


def _written(
    stride: Pair, size: Pair, channels_last: bool, layout: Layout, bias: Tensor | None, *parts: Tensor
) -> Tensor:
    shape = (*parts[0].shape[:-2], *size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=memory_format)
    places = dict(zip(_all_phases(stride), _split(y, stride), strict=True))
    column = [] if bias is None else [bias[:, None, None]]
    for phase in dict.fromkeys(layout):
        place = places[phase]
        terms = [part for at, part in zip(layout, parts, strict=True) if at == phase]
        h, w = place.shape[-2:]
        if (h, w) != terms[0].shape[-2:]:
            terms = [part[..., :h, :w] for part in terms]
        terms += column
        if len(terms) == 1:
            place.copy_(terms[0])
        else:  # the first may be strided, like the place: it is read and the place written once
            torch.add(terms[0], add_up(terms[1:]), out=place)
    return y


def _signed(forward: Any) -> Any:
    # autograd asks for the signature in every call, and working it out takes as long as a small convolution
    forward.__signature__ = inspect.signature(forward)
    return forward


class _Split(torch.autograd.Function):
    # Plain slicing would do, but autograd makes a full-sized tensor of zeros for the gradient of each slice.

    @staticmethod
    @_signed
    def forward(x: Tensor, stride: Pair) -> tuple[Tensor, ...]:
        return _split(x, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.stride, ctx.channels_last = inputs[1], is_channels_last(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        phases = dict(zip(_all_phases(ctx.stride), grads, strict=True))
        return interleave(phases, ctx.stride, channels_last=ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, _: None) -> tuple[Tensor, ...]:
        return _split(x, ctx.stride)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, stride: Pair) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        views = _Split.apply(x.movedim(in_dims[0], 0), stride)
        return views, (0,) * len(views)


class _Interleave(torch.autograd.Function):
    # Each phase is written into its place in the output; autograd would record such writes as a chain of
    # full-sized copies.

    @staticmethod
    @_signed
    def forward(
        stride: Pair, size: Pair, channels_last: bool, layout: Layout, bias: Tensor | None, *parts: Tensor
    ) -> Tensor:
        return _written(stride, size, channels_last, layout, bias, *parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.arguments = inputs[:4]
        ctx.grid = inputs[5].shape[-2:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        stride, _, _, layout = ctx.arguments
        h, w = ctx.grid
        views = dict(zip(_all_phases(stride), _split(g, stride), strict=True))
        grads = {}
        for phase in layout:
            view = views[phase]
            missing = (h - view.shape[-2], w - view.shape[-1])
            grads[phase] = F.pad(view, (0, missing[1], 0, missing[0])) if any(missing) else view
        bias = g.sum([d for d in range(g.dim()) if d != g.dim() - 3]) if ctx.needs_input_grad[4] else None
        return None, None, None, None, bias, *(grads[phase] for phase in layout)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _interleave(*ctx.arguments, *tangents[4:])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, stride: Pair, size: Pair, channels_last: bool, layout: Layout, *tensors: Any
    ) -> tuple[Tensor, int]:
        batched: list[Any] = [
            t if t is None else t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(tensors, in_dims[4:], strict=True)
        ]
        bias, *parts = batched
        if bias is not None and parts[0].dim() == 5:
            bias = bias[:, None]
        return _interleave(stride, size, False, layout, bias, *parts), 0
