"""The smallest modules whose forward holds both a resize and the convolution that reads it: what is to be
watched (:mod:`pixelize.rewrites.watching`)."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from pixelize.rewrites.graph.flow import Flow, read_by
from pixelize.rewrites.watching.watched import has_one_graph, refusal

BY_SIZE = "resized to a given size in a graph of its own, where no call can tell by what factor"


def enclosing(
    flow: Flow, model: nn.Module, names: tuple[str, ...], calls: list[fx.Node]
) -> dict[str, Any] | str:
    """For a site's options what is to be watched, ``{"watch": [name, ...]}``, or in which graph it is proved,
    ``{"graph": name}``; the reason if it can be neither."""
    watched: set[str] = set()
    graphs: set[str] = set()
    for call in calls:
        between = _between(flow, call)
        common = _common([node.meta.get("calls", ()) for node in (call, *between)])
        why = "its resize and it are not seen in one module's forward"
        for name, _ in reversed(common):
            module = model.get_submodule(name)
            reason = refusal(module)
            if reason is None:
                watched.add(name)
                break
            if isinstance(module, fx.GraphModule):
                reason = _unproved(flow, module, name, names, between)
                if reason is None:
                    graphs.add(name)
                    break
            why = f"its resize cannot be watched in {name or type(model).__name__}: {reason}"
        else:
            return why
    if graphs and (watched or len(graphs) > 1):
        return "called in several places, of which one is in a graph of its own"
    return {"graph": graphs.pop()} if graphs else {"watch": sorted(watched)}


def _between(flow: Flow, call: fx.Node) -> list[fx.Node]:
    """The nodes by which resized pictures come to a convolution."""
    between: dict[fx.Node, None] = {}
    waiting = [read_by(flow, call)]
    while waiting:
        node = waiting.pop()
        if node in flow.blocks and node not in between:
            between[node] = None
            waiting += node.all_input_nodes
    return list(between)


def _common(stacks: list[tuple[tuple[str, int], ...]]) -> list[tuple[str, int]]:
    shared = []
    for level in zip(*stacks, strict=False):
        if any(entry != level[0] for entry in level):
            break
        shared.append(level[0])
    return shared


def _unproved(
    flow: Flow, module: fx.GraphModule, name: str, names: tuple[str, ...], between: list[fx.Node]
) -> str | None:
    """Why it does not hold for every call of a graph that what lies between is a resized picture."""
    if not has_one_graph(module):
        return f"{type(module).__name__} has more than one graph"
    prefix = f"{name}." if name else ""
    called = [n for n in module.graph.nodes if n.op == "call_module" and prefix + str(n.target) in names]
    if len(called) != 1:
        return "its graph calls the convolution elsewhere"
    resizes = [flow.ops[node] for node in between if flow.ops[node].kind == "resize"]
    return BY_SIZE if any(op.args["scale"] is None for op in resizes) else None
