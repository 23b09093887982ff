"""Which channels of which tensors a resize has made: the dataflow analysis behind resize-then-convolution.

After a nearest resize by an integer factor, such as (s_h, s_w), every channel is constant over blocks of
s_h * s_w pixels. Elementwise functions, per-channel affine maps (batch norm) and copies keep that; a
concatenation keeps it for the channels that had it; whatever mixes pixels ends it. A convolution that reads
such channels is a transposed convolution of the small image, whatever stood between it and the resize.

After a linear resize (bilinear, trilinear) they are linear in between the small image's pixels: only what
acts on a channel as one affine map keeps that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import gcd
from operator import mul
from typing import Any

import torch
from torch import Tensor, fx, nn

from pixelize.rewrites.graph.operator_names import LINEAR
from pixelize.rewrites.graph.operators import Op, describe, shape_of
from pixelize.rewrites.graph.resize_factor import Factor, resize_factor, spread

# channelwise by name, but not one affine map
_KINKED = ("prelu", "_prelu_kernel", "PReLU")
Margin = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Blocks:
    """The block sizes of a tensor's channels along each axis, ones for none, and the resizes they come from.

    A single entry stands for any number of channels, all alike. ``margin`` is what padding has put around the
    blocks since: its mode (``"zeros"``, ``"replicate"`` or ``"reflect"``) and its width on both sides of each
    axis. ``mode`` is the resize's: ``"nearest"``, or ``"linear"`` where the blocks are not constant, along
    however many axes.
    """

    factors: tuple[Factor, ...]
    sources: frozenset[fx.Node]
    margin: Margin | None = None
    mode: str = "nearest"

    def over(self, channels: int) -> tuple[Factor, ...]:
        """The factors of each of ``channels`` channels."""
        return self.factors * channels if len(self.factors) == 1 else self.factors


@dataclass
class Flow:
    """What the analysis found: the operations, the blocks of each node, and every resize with what became of
    it."""

    ops: dict[fx.Node, Op]
    like: Tensor = field(default_factory=lambda: torch.empty(()))
    """A parameter of the model, for its device and type."""
    blocks: dict[fx.Node, Blocks] = field(default_factory=dict)
    resizes: dict[fx.Node, str] = field(default_factory=dict)
    """Each resize and why its result is no block image, or ``""`` if it is one."""
    ends: dict[fx.Node, list[str]] = field(default_factory=dict)
    """For each resize, the operations other than a convolution that mix its pixels."""
    convolved: set[fx.Node] = field(default_factory=set)
    """The resizes that a convolution reads."""


def analyse(graph: fx.Graph, root: nn.Module) -> Flow:
    """The block sizes of every value of ``graph``; ``root`` owns the modules that it calls."""
    like = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(()))
    flow = Flow({node: describe(node, root) for node in graph.nodes}, like)
    changed = _changed_through_views(graph)
    for node, op in flow.ops.items():
        blocks = _transfer(node, op, flow) if node not in changed else None
        if node in changed and op.kind == "resize" and _enlarges(node, op):
            flow.resizes[node] = "parts of its result are overwritten"
        if blocks is not None and any(map(_is_resized, blocks.factors)):
            flow.blocks[node] = blocks
            continue
        for source in _sources(node, flow):
            if op.kind == "conv":
                flow.convolved.add(source)
            if op.kind not in ("conv", "resize") and node.op != "output":
                flow.ends.setdefault(source, []).append(op.name)
    return flow


def _changed_through_views(graph: fx.Graph) -> set[fx.Node]:
    """The values that an operator writes into through a view of them (``u[..., 0] = 1``)."""
    changed: set[fx.Node] = set()
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        value = node.args[0] if node.args else None
        while isinstance(value, fx.Node) and isinstance(value.target, torch._ops.OpOverload):
            source = value.args[0] if value.args else None
            if not value.target.is_view or not isinstance(source, fx.Node):
                break
            value = source
            changed.add(value)
    return changed


def _is_resized(factor: Factor) -> bool:
    return any(s != 1 for s in factor)


def _combined(function: Callable[[int, int], int], a: Factor, b: Factor) -> Factor:
    n = max(len(a), len(b))
    return tuple(map(function, spread(a, n), spread(b, n)))


def channels_of(shape: tuple[int, ...] | None) -> int:
    """The number of channels of a value (N, C, ..) of that shape; 1, which stands for all, of none."""
    return shape[1] if shape is not None and len(shape) > 2 else 1


def _sources(node: fx.Node, flow: Flow) -> Iterable[fx.Node]:
    return {s for n in node.all_input_nodes if n in flow.blocks for s in flow.blocks[n].sources}


def _transfer(node: fx.Node, op: Op, flow: Flow) -> Blocks | None:
    if op.kind == "resize":
        return _resized(node, op, flow)
    if op.kind == "alias":
        return flow.blocks.get(op.args["input"])
    if op.kind == "channelwise":
        blocks = flow.blocks.get(op.args["input"])
        if blocks is None or not _movable(blocks):
            return None
        return blocks if blocks.mode == "nearest" or op.name not in _KINKED else None
    if op.kind == "pad":
        return _padded(op, flow)
    if op.kind == "item":
        return flow.blocks.get(op.args["input"]) if op.args["index"] == 0 else None
    if op.kind == "pointwise":
        return _pointwise(node, flow)
    if op.kind == "cat":
        return _concatenated(op, flow)
    if op.kind == "slice":
        return _sliced(op, flow)
    return None


def _resized(node: fx.Node, op: Op, flow: Flow) -> Blocks | None:
    factor, reason = resize_factor(node, op)
    before = flow.blocks.get(op.args["input"])
    mode = "linear" if op.args["mode"] in LINEAR else "nearest"
    if before is not None and (before.margin is not None or "linear" in (mode, before.mode)):
        before = None
    if factor is not None and not _is_resized(factor):
        return flow.blocks.get(op.args["input"])
    if _enlarges(node, op):
        flow.resizes[node] = reason
    if factor is None:
        return None
    channels = channels_of(shape_of(node))
    old = before.over(channels) if before is not None else ((1,),) * channels
    sources = before.sources if before is not None else frozenset()
    return Blocks(tuple(_combined(mul, f, factor) for f in old), sources | {node}, mode=mode)


def _enlarges(node: fx.Node, op: Op) -> bool:
    before, after = shape_of(op.args["input"]), shape_of(node)
    return before is None or after is None or any(b < a for b, a in zip(before[2:], after[2:], strict=False))


def _movable(blocks: Blocks) -> bool:
    """Whether a function of the values keeps the margin what it is: a zero may become another number."""
    return blocks.margin is None or blocks.margin[0] != "zeros"


def _padded(op: Op, flow: Flow) -> Blocks | None:
    """Symmetric padding: with zeros; with the outermost pixels; or reflected by one pixel, which within a
    block is the same."""
    blocks = flow.blocks.get(op.args["input"])
    pads, mode = op.args["pads"], op.args["mode"]
    if blocks is None or blocks.margin is not None or not isinstance(pads, list | tuple):
        return None
    width = margin_of(pads)
    shape = shape_of(op.args["input"])
    if width is None or (shape is not None and len(shape) != len(width) + 2):
        return None
    if mode == "constant" and not op.args["value"]:
        return replace(blocks, margin=("zeros", width))
    if mode == "reflect" and blocks.mode == "nearest" and not all(
        map(partial(within_blocks, width), blocks.factors)
    ):  # fmt: skip
        return None
    return replace(blocks, margin=(mode, width)) if mode in ("reflect", "replicate") else None


def margin_of(pads: Sequence[Any]) -> tuple[int, ...] | None:
    """The width of a padding on both sides of each axis; None where it is not the same on both.

    ``pads`` is torch's: (before, after) of the last axis, of the one before it, ..
    """
    width = tuple(pads[::2])[::-1]
    same = len(pads) % 2 == 0 and all(a == b for a, b in zip(pads[::2], pads[1::2], strict=True))
    return width if same and all(w >= 0 for w in width) else None


def within_blocks(width: tuple[int, ...], factor: Factor) -> bool:
    """Whether reflecting by that width repeats the outermost blocks' own value."""
    return all(w == 0 or (w == 1 and s > 1) for w, s in zip(width, spread(factor, len(width)), strict=False))


def _pointwise(node: fx.Node, flow: Flow) -> Blocks | None:
    """The greatest block size that all operands share; what is constant over the whole picture does not
    count."""
    shape = shape_of(node)
    factors: list[Factor] | None = None
    sources: frozenset[fx.Node] = frozenset()
    margin: Margin | None = None
    axes = len(shape) - 2 if shape is not None and len(shape) > 2 else 2
    for operand in node.all_input_nodes:
        blocks = flow.blocks.get(operand)
        if blocks is None:
            size = shape_of(operand)
            if size is None or any(d != 1 for d in size[-axes:]):
                return None
            continue
        if (
            blocks.mode != "nearest"
            or not _movable(blocks)
            or (factors is not None and blocks.margin != margin)
        ):
            return None
        mine = blocks.over(channels_of(shape))
        sources |= blocks.sources
        margin = blocks.margin
        factors = list(mine) if factors is None else [
            _combined(gcd, a, b) for a, b in zip(factors, mine, strict=False)
        ]  # fmt: skip
    return Blocks(tuple(factors), sources, margin) if factors is not None else None


def _concatenated(op: Op, flow: Flow) -> Blocks | None:
    factors: list[Factor] = []
    sources: frozenset[fx.Node] = frozenset()
    resized = [flow.blocks[t] for t in op.args["tensors"] if t in flow.blocks]
    margins = {blocks.margin for blocks in resized}
    if len(margins) != 1:
        return None
    # a convolution is split into one for the resized channels and one for the others: one mode for all
    mode = "nearest" if any(blocks.mode == "nearest" for blocks in resized) else "linear"
    for tensor in op.args["tensors"]:
        shape = shape_of(tensor)
        if shape is None or len(shape) < 3 or op.args["dim"] not in (1, 1 - len(shape)):
            return None
        mine = flow.blocks.get(tensor)
        mine = None if mine is None or mine.mode != mode else mine
        factors += mine.over(shape[1]) if mine is not None else [(1,)] * shape[1]
        sources |= mine.sources if mine is not None else frozenset()
    return Blocks(tuple(factors), sources, margins.pop(), mode)


def _sliced(op: Op, flow: Flow) -> Blocks | None:
    blocks = flow.blocks.get(op.args["input"])
    shape = shape_of(op.args["input"])
    if blocks is None or shape is None:
        return None
    start, stop, step = op.args.get("start") or 0, op.args.get("stop"), op.args.get("step") or 1
    dim = op.args.get("dim", 0) % len(shape)
    if not all(isinstance(v, int) or v is None for v in (start, stop, step)):
        return None
    if dim != 1:
        whole = start == 0 and step == 1 and (stop is None or stop >= shape[dim])
        return blocks if whole or dim == 0 else None
    return replace(blocks, factors=blocks.over(shape[1])[start:stop:step])


def read_by(flow: Flow, call: fx.Node) -> fx.Node:
    """The value that a convolution's module receives: not yet padded, where its ``padding_mode`` makes it do
    that itself."""
    value = flow.ops[call].args["input"]
    op = flow.ops.get(value)
    if call.op != "call_module" and op is not None and op.kind == "pad" and _owner(value) == _owner(call):
        return op.args["input"]
    return value


def _owner(node: fx.Node) -> object:
    return node.meta.get("owner")


def uses(flow: Flow, node: fx.Node, through: tuple[str, ...]) -> list[Any]:
    """The operations that read ``node``, seen through those of the kinds in ``through`` with no other operand
    (or, where they are affine maps of channels, none but their own weights)."""
    readers: list[Any] = []
    for user in node.users:
        op = flow.ops[user]
        if op.kind == "item" and (op.args["index"] == 0 or not user.users):
            readers += uses(flow, user, through)  # of several results: the value, or one that nobody reads
            continue
        alone = len(user.all_input_nodes) == 1 or (op.kind == "channelwise" and op.args["input"] is node)
        if op.kind in through and alone:
            readers += uses(flow, user, through)
        else:
            readers.append((user, op))
    return readers
