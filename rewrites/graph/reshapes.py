"""What a chain of reshapes and permutations does, found by doing it to numbered elements."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.graph.resize_factor import Factor

_MOVES = ("view", "reshape", "permute", "transpose", "_unsafe_view", "unflatten", "clone", "contiguous")


def shuffle_order(
    value: fx.Node, user: fx.Node, n: int, last: bool = False
) -> tuple[Factor, tuple[int, ...]] | None:
    """The factor of a shuffle along ``n`` axes that ``user`` begins, and which channel of ``value`` each
    (c, phase along each axis) of the output takes.

    Follows reshapes and permutations from ``user`` on, doing them to numbered elements; None if they are no
    shuffle. ``last``: the channels of ``value`` lie last, and those of the output may.
    """
    shape = shape_of(value)
    if shape is None or len(shape) != n + 2 or 0 in shape:
        return None
    samples, channels, *size = shape if not last else (shape[0], shape[-1], *shape[1:-1])
    numbered = torch.arange(prod(shape)).reshape(samples, channels, *size)
    for x in moved(numbered.movedim(1, -1).contiguous() if last else numbered, user):
        for picture in (x, x.movedim(-1, 1)) if last and x.dim() == n + 2 else (x,):
            if _is_enlarged(tuple(picture.shape), samples, size):
                return _order(picture, numbered)
    return None


def moved(x: Tensor, user: fx.Node) -> Iterator[Tensor]:
    """``x`` after each of the reshapes and permutations that begin with ``user``, as long as nothing else
    reads what they make."""
    source: fx.Node | None = None
    node = user
    while isinstance(node.target, torch._ops.OpOverload) and (
        node.target.overloadpacket.__name__ in _MOVES
        and len(node.all_input_nodes) == 1
        and (source is None or node.all_input_nodes[0] is source)
    ):
        try:
            x = node.target(x, *node.args[1:], **node.kwargs)
        except Exception:  # sizes that the capture does not hold as numbers
            return
        yield x
        if len(node.users) != 1:
            return
        source, node = node, next(iter(node.users))


def _order(x: Tensor, numbered: Tensor) -> tuple[Factor, tuple[int, ...]] | None:
    """The factor and the order of a shuffle that makes ``x`` of ``numbered`` elements, None if it is none."""
    channels, *size = numbered.shape[1:]
    factor = tuple(a // b for a, b in zip(x.shape[2:], size, strict=True))
    if x.shape[1] * prod(factor) != channels:
        return None
    corner: tuple[Any, ...] = (0, slice(None), *(slice(r) for r in factor))
    phases = x[corner] // prod(size)
    order = phases.reshape(-1)
    same = torch.equal(unshuffled(x, factor), numbered[:, order])
    return (factor, tuple(order.tolist())) if same else None


def _is_enlarged(shape: tuple[int, ...], samples: int, size: list[int]) -> bool:
    if len(shape) != len(size) + 2 or shape[0] != samples or list(shape[2:]) == size:
        return False
    return all(a % b == 0 and a >= b for a, b in zip(shape[2:], size, strict=True))


def unshuffled(x: Tensor, factor: Factor) -> Tensor:
    """``F.pixel_unshuffle`` along any number of axes, of an empty batch too."""
    n = len(factor)
    if n == 2 and factor[0] == factor[1] and (isinstance(x, fx.Proxy) or x.shape[0] != 0):
        return F.pixel_unshuffle(x, factor[0])
    for i, r in enumerate(reversed(factor)):
        x = x.unflatten(-2 * i - 1, (-1, r))
    phases = [2 * i + 1 - 2 * n for i in range(n)]
    return x.movedim(phases, [i - 2 * n for i in range(n)]).flatten(-2 * n - 1, -n - 1)


def unfolds(value: fx.Node, user: fx.Node) -> bool:
    """Whether reshapes and permutations from ``user`` on make each token of ``value`` (N, tokens, features) a
    block of pixels of a picture or a volume."""
    shape = shape_of(value)
    if shape is None or len(shape) != 3 or 0 in shape:
        return False
    for x in moved(torch.arange(prod(shape)).reshape(shape), user):
        if x.dim() in (4, 5) and len(x) == shape[0]:
            tokens = x[0] // shape[2]
            if any(_are_blocks(t, shape[2]) for t in (tokens, tokens.movedim(-1, 0))):
                return True
    return False


def _are_blocks(tokens: Tensor, features: int) -> bool:
    """Whether the numbers (C, H, W) say that every ``features`` of them are one block of all channels."""
    first, channels = tokens[0], len(tokens)
    blocks = first
    factor = []
    for axis, size in enumerate(first.shape):
        line = first.movedim(axis, 0).reshape(size, -1)[:, 0]
        p = int((line == line[0]).sum())
        if size % p or size // p < 2:
            return False
        factor.append(p)
        blocks = blocks.index_select(axis, torch.arange(0, size, p))
    if prod(factor) == 1 or prod(factor) * channels != features or len(blocks.unique()) != blocks.numel():
        return False
    for axis, p in enumerate(factor):
        blocks = blocks.repeat_interleave(p, axis)
    return torch.equal(blocks.expand_as(tokens), tokens)
