"""All up-sampling sites of a model, by the best capture that it allows."""

from __future__ import annotations

from typing import Any

from pixelize.rewrites import pixel_shuffle, resize_conv
from pixelize.rewrites.capture import capture
from pixelize.rewrites.flow import Flow, analyse, read_by
from pixelize.rewrites.functional import scan_functional
from pixelize.rewrites.modules import qualified_names, scan_conv_transpose
from pixelize.rewrites.probe import factors_kept
from pixelize.rewrites.site import Site, Skipped, Survey
from torch import fx, nn

VARYING = "the resize has another factor at another input size"
FUNCTIONAL = "called as F.conv_transpose2d: make it a module first (pixelize.rewrites.outline)"


def survey(model: nn.Module, example_inputs: Any = None, functional: bool = False) -> Survey:
    """Finds every up-sampling site of ``model`` and changes nothing.

    ``example_inputs``: a tensor, a tuple of positional or a dict of keyword arguments. ``functional`` is for a caller that makes modules of the
    functional sites with :func:`pixelize.rewrites.outline` before it swaps any: without it they are listed as skipped.
    """
    sites, skipped = scan_conv_transpose(model)
    seen = capture(model, example_inputs)
    if seen.graph is None:
        return Survey(tuple(sites), tuple(skipped), seen.name, seen.notes)
    notes = list(seen.notes)
    flow = analyse(seen.graph, model)
    calls = _calls(flow, model)
    more, refused = _convolutions(flow, model, calls)
    kept = _unchanging(model, flow, calls, more, example_inputs, notes)
    sites += kept
    skipped += refused
    skipped += [Skipped(s.name, s.kind, s.type, VARYING) for s in more if s not in kept]
    outlined, refused = scan_functional(model, flow)
    skipped += refused
    if functional:
        sites += outlined
    else:
        skipped += [Skipped(s.name, s.kind, s.type, FUNCTIONAL) for s in outlined]
    order = {path: i for i, path in enumerate(calls)}
    sites.sort(key=lambda site: min((order[n] for n in site.names if n in order), default=len(order)))
    return Survey(tuple(sites), tuple(skipped), seen.name, tuple(notes))


def _unchanging(
    model: nn.Module,
    flow: Flow,
    calls: dict[str, list[fx.Node]],
    sites: list[Site],
    example_inputs: Any,
    notes: list[str],
) -> list[Site]:
    """The sites whose resize has the same factor at another input size; a scale given as a number needs no look."""
    doubtful = []
    for site in sites:
        inputs = [read_by(flow, node) for node in calls[site.name]]
        sources = {s for x in inputs if x in flow.blocks for s in flow.blocks[x].sources}
        if site.kind in ("resize_conv", "resize") and any(flow.ops[s].args["scale"] is None for s in sources):
            doubtful.append(site)
    if not doubtful or example_inputs is None:
        return sites
    kept = factors_kept(model, doubtful, example_inputs)
    if kept is None:
        notes.append("no other input size runs: resizes to a given size were seen at one size only")
        return sites
    return [s for s in sites if kept.get(s.name, True)]


def _calls(flow: Flow, model: nn.Module) -> dict[str, list[fx.Node]]:
    """The convolution nodes of each module, by its qualified name, in the order of execution."""
    first = {name: names[0] for names in qualified_names(model).values() for name in names}
    calls: dict[str, list[fx.Node]] = {}
    for node, op in flow.ops.items():
        owner = first.get(str(node.meta.get("owner", "")))
        if op.kind in ("conv", "conv_transpose") and owner is not None:
            calls.setdefault(owner, []).append(node)
    return calls


def _convolutions(
    flow: Flow, model: nn.Module, calls: dict[str, list[fx.Node]]
) -> tuple[list[Site], list[Skipped]]:
    names = qualified_names(model)
    sites: list[Site] = []
    skipped: list[Skipped] = []
    used: set[fx.Node] = set()
    for path, nodes in calls.items():
        module = model.get_submodule(path)
        if not isinstance(module, nn.Conv2d):
            continue
        for kind, match in (("resize_conv", resize_conv.match), ("pixel_shuffle", pixel_shuffle.match)):
            found = match(flow, path, names[id(module)], module, nodes)
            if found is None:
                continue
            if isinstance(found, str):
                skipped.append(Skipped(path, kind, type(module).__name__, found))
            else:
                sites.append(found)
            for node in nodes:
                blocks = flow.blocks.get(read_by(flow, node))
                used |= blocks.sources if blocks is not None else frozenset()
            break
    for node, reason in flow.resizes.items():
        if node not in used:
            name = str(node.meta.get("owner", ""))
            ends = sorted(set(flow.ends.get(node, ())))
            why = reason or (
                "no convolution reads its result" + (f", which goes to {', '.join(ends)}" if ends else "")
            )
            kind = (
                type(model.get_submodule(name)).__name__
                if node.op != "call_function"
                else flow.ops[node].name
            )
            skipped.append(Skipped(name, "resize", kind, why))
    return sites, skipped
