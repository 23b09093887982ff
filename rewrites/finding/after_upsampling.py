"""Convolutions that read what was just up-sampled: the first to see its pixels side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from pixelize.rewrites.graph.flow import Flow
from pixelize.rewrites.graph.operators import Op, shape_of
from pixelize.rewrites.idioms.pixel_shuffle import ShuffleConv
from pixelize.rewrites.idioms.plain_conv import has_one_tap
from pixelize.rewrites.idioms.replacement import ConvReplacement
from pixelize.rewrites.site import Site


class UpSamplers(NamedTuple):
    """All names of the modules that up-sample, converted or not: those that enlarge their input (transposed
    convolutions with a stride, convolutions that read a resize), and those whose output is shuffled into
    pixels. Resizes, shuffles and functional transposed convolutions are known by what they do.
    """

    enlarging: set[str]
    shuffled: set[str]


def up_samplers(model: nn.Module, sites: list[Site]) -> UpSamplers:
    """The up-samplers among the modules of a model in which ``sites`` were found."""
    names = UpSamplers(set(), set())
    for site in sites:
        if site.kind in ("resize_conv", "pixel_shuffle"):
            (names.shuffled if site.kind == "pixel_shuffle" else names.enlarging).update(site.names)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ShuffleConv):
            names.shuffled.add(name)
        elif isinstance(module, ConvReplacement) or (
            isinstance(module, _ConvTransposeNd) and max(module.stride) > 1
        ):
            names.enlarging.add(name)
    return names


def reads_upsampled(model: nn.Module, flow: Flow, call: fx.Node, makers: UpSamplers) -> bool:
    """Whether a convolution reads, along any path, what an up-sampler made and no other convolution of more
    than one tap has read since, whatever else lies between the two, if it keeps the size or pads or crops.
    """
    read = flow.ops[call].args["input"]
    waiting, seen = [(read, _size(read))], set[fx.Node]()
    while waiting:
        node, size = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        op, own = flow.ops[node], _size(node)
        picture = size is None or own is None or len(own) == len(size)  # else a reshaped one, as in a shuffle
        resized = picture and None not in (size, own) and own != size
        if _within(node, makers.shuffled) or (not resized and _enlarges(flow, node, op, makers.enlarging)):
            return True
        mixes = op.kind == "conv_transpose" or (op.kind == "conv" and not _has_one_tap(model, op))
        if op.kind in ("pad", "slice", "item"):
            waiting.append((op.args["input"], None))
        elif not mixes and not resized:
            waiting += [(read, own if picture else size) for read in node.all_input_nodes]
    return False


def _enlarges(flow: Flow, node: fx.Node, op: Op, makers: set[str]) -> bool:
    if node in flow.resizes or op.kind == "shuffle":
        return True
    if op.kind == "conv_transpose" and max(_numbers(op.args.get("stride", 1))) > 1:
        return True
    return _within(node, makers)


def _within(node: fx.Node, names: set[str]) -> bool:
    owner = str(node.meta.get("owner", ""))
    return any(owner == name or owner.startswith(f"{name}.") for name in names)


def _has_one_tap(model: nn.Module, op: Op) -> bool:
    if "module" in op.args:
        return has_one_tap(model.get_submodule(op.args["module"]))
    return set(_size(op.args["weight"]) or ()) == {1}


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _size(node: object) -> tuple[int, ...] | None:
    shape = shape_of(node)
    return shape[2:] if shape is not None else None
