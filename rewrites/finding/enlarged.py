"""Pictures that are made larger by means that are no known kind: listed, so that nobody takes them for
none.
"""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.graph.flow import Flow
from pixelize.rewrites.graph.operators import shape_of
from pixelize.rewrites.site import Skipped

_SAMPLING = {
    "index", "index_select", "gather", "repeat", "tile", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
    "grid_sample",
}  # fmt: skip
_RESHAPES = {"view", "reshape", "_unsafe_view", "flatten"}
_REPEATS = {"expand", "repeat", "mul"}
_MOVES = {"clone", "contiguous", "permute", "transpose", "unsqueeze", "unflatten", "alias", *_RESHAPES}


def enlarged(model: nn.Module, flow: Flow) -> list[Skipped]:
    """What makes (N, C, *size) larger with its channels as they are, by indices, repeats or writes in
    steps.
    """
    skipped: dict[tuple[str, str], Skipped] = {}
    for node, op in flow.ops.items():
        owner = str(node.meta.get("owner") or "")
        module = model.get_submodule(owner)
        if isinstance(module, _ConvNd) or flow.ops.get(node.next, op).kind == "resize":
            continue  # a pixel deconvolution interleaves its phases; what repeat_interleave does inside
        if op.name in _SAMPLING and _grows(_first(node), node):
            how = op.name
        elif op.name in _RESHAPES and (repeat := _repeated(node, flow)):
            how = f"{repeat} and {op.name}"
        elif op.name == "copy" and _is_stepped(_first(node), flow):
            how = "writing to every so many pixels"
        else:
            continue
        reason = f"a picture made larger by {how}, which is no known kind of up-sampling"
        skipped.setdefault((owner, reason), Skipped(owner, "resize", type(module).__name__, reason))
    return list(skipped.values())


def _first(node: fx.Node) -> fx.Node | None:
    value = node.args[0] if node.args else None
    return value if isinstance(value, fx.Node) else None


def _grows(before: fx.Node | None, after: fx.Node) -> bool:
    """Whether pictures or volumes become larger, and no axis of them is merely broadcast."""
    a, b = shape_of(before), shape_of(after)
    if a is None or b is None or len(a) != len(b) or len(a) < 4 or a[:2] != b[:2]:
        return False
    axes = list(zip(a[2:], b[2:], strict=True))
    return (
        all(m <= n for m, n in axes) and any(m < n for m, n in axes) and all(m > 1 or m == n for m, n in axes)
    )


def _repeated(node: fx.Node, flow: Flow) -> str | None:
    """What repeated pixels that ``node`` puts beside each other."""
    repeat, value = None, _first(node)
    while value is not None and (op := flow.ops.get(value)) is not None:
        if op.name in _REPEATS:
            repeat = op.name
        elif op.name not in _MOVES and shape_of(value) != shape_of(_first(value)):
            break
        if repeat is not None and _grows(_first(value), node):
            return repeat
        value = _first(value)
    return None


def _is_stepped(value: fx.Node | None, flow: Flow) -> bool:
    """Whether a view leaves pixels of a picture out, at every so many."""
    stepped = False
    while value is not None and (op := flow.ops.get(value)) is not None and op.kind == "slice":
        rank = len(shape_of(value) or ())
        step, dim = op.args.get("step", 1), op.args.get("dim", 0)
        stepped |= rank >= 4 and isinstance(step, int) and step > 1 and dim % rank > 1
        value = _first(value)
    return stepped
