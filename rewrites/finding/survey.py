"""All up-sampling sites of a model, by the best capture that it allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from torch import fx, nn

from pixelize.rewrites.finding.after_upsampling import reads_upsampled, up_samplers
from pixelize.rewrites.finding.conv import scan_conv
from pixelize.rewrites.finding.conv_transpose import qualified_names, scan_conv_transpose
from pixelize.rewrites.finding.enclosing import enclosing
from pixelize.rewrites.finding.enlarged import enlarged
from pixelize.rewrites.finding.functional import scan_functional
from pixelize.rewrites.finding.readers import readers_in_training, weight_readers
from pixelize.rewrites.graph.flow import Flow, analyse, read_by
from pixelize.rewrites.idioms import resize
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS
from pixelize.rewrites.idioms.registry import matched
from pixelize.rewrites.idioms.replacement import ConvReplacement
from pixelize.rewrites.seeing.capture import capture
from pixelize.rewrites.seeing.other_size import at_another_size
from pixelize.rewrites.site import Convolutions, Site, Skipped, Survey

VARYING = "the resize has another factor at another input size"
FUNCTIONAL = "called as a function: make it a module first (pixelize.rewrites.outline)"

UNSEEN = "which convolutions read what was up-sampled can be told of a model that is seen as a graph only"

Calls = dict[str, list[fx.Node]]


def survey(
    model: nn.Module, example_inputs: Any = None, functional: bool = False, convolutions: Convolutions = None
) -> Survey:
    """Finds every up-sampling site of ``model`` and changes nothing.

    ``example_inputs``: a tensor, a tuple of positional or a dict of keyword arguments. ``functional`` is for
    a caller that makes modules of the functional sites with :func:`pixelize.rewrites.outline` before it swaps
    any: without it they are listed as skipped. ``convolutions``: which of those that up-sample nothing are
    found too: all, or those that read what was up-sampled
    (:mod:`pixelize.rewrites.finding.after_upsampling`).
    """
    sites, skipped = scan_conv_transpose(model)
    seen = capture(model, example_inputs)
    if seen.graph is None:
        sites += scan_conv(model) if convolutions == "all" else []
        unseen = (UNSEEN,) if convolutions == "after_upsampling" else ()
        return Survey(tuple(sites), tuple(skipped), seen.name, seen.notes + unseen)
    notes = list(seen.notes)
    flow = analyse(seen.graph, model)
    calls = _calls(flow, model)
    runs = _also_run(seen.graph, model, example_inputs)
    convolved, refused, used = _convolutions(flow, model, calls, runs)
    outlined, opaque = scan_functional(model, flow)
    bare, left = _resizes(flow, model, calls, used | flow.convolved | _read_by_replacements(flow, model))
    convolved, varying = _unchanging(model, flow, calls, convolved, runs, example_inputs, notes)
    if not functional:
        opaque += [Skipped(s.name, s.kind, s.type, FUNCTIONAL) for s in outlined]
        outlined = []
    sites += [*convolved, *bare, *outlined]
    if convolutions:
        elsewhere = {name for site in sites for name in site.names}
        plain = [site for site in scan_conv(model) if site.name not in elsewhere]
        if convolutions == "after_upsampling":
            makers = up_samplers(model, sites)
            plain = [
                site
                for site in plain
                if any(reads_upsampled(model, flow, call, makers) for call in calls.get(site.name, ()))
            ]
        sites += plain
    order = {path: i for i, path in enumerate(calls)}
    sites.sort(key=lambda site: min((order[n] for n in site.names if n in order), default=len(order)))
    skipped += [*refused, *varying, *left, *opaque, *enlarged(model, flow)]
    return Survey(tuple(sites), tuple(skipped), seen.name, tuple(notes))


def _calls(flow: Flow, model: nn.Module) -> Calls:
    """The nodes in which each module convolves or resizes, by its first qualified name, in the order of
    execution."""
    first = {name: names[0] for names in qualified_names(model).values() for name in names}
    calls: Calls = {}
    for node, op in flow.ops.items():
        owner = first.get(str(node.meta.get("owner", "")))
        if op.kind in ("conv", "conv_transpose", "resize", "linear") and owner is not None:
            calls.setdefault(owner, []).append(node)
    return calls


def _convolutions(
    flow: Flow, model: nn.Module, calls: Calls, runs: Callable[[], list[fx.Graph]]
) -> tuple[list[Site], list[Skipped], set[fx.Node]]:
    """Convolutions that follow a resize or, as linear layers, precede a shuffle, those that cannot be
    converted, and the resizes that any of them reads."""
    names = qualified_names(model)
    sites: list[Site] = []
    skipped: list[Skipped] = []
    used: set[fx.Node] = set()
    for path, nodes in calls.items():
        module = model.get_submodule(path)
        if not isinstance(module, (*CONVOLUTIONS, nn.Linear)) or isinstance(module, ConvReplacement):
            continue
        mine = names[id(module)]
        answer = matched(flow, path, mine, module, nodes)
        if answer is None:
            continue
        if isinstance(answer, Site):
            answer = _placed(answer, flow, model, nodes, runs())
        if isinstance(answer, str):
            skipped.append(Skipped(path, _kind(flow, nodes), type(module).__name__, answer))
        else:
            sites.append(answer)
        used |= {s for n in nodes for s in _sources(flow, n)}
    return sites, skipped, used


def _also_run(graph: fx.Graph, model: nn.Module, example_inputs: Any) -> Callable[[], list[fx.Graph]]:
    """Gives ``graph``, and what the model runs in training mode: once asked for, if it is."""

    @cache
    def runs() -> list[fx.Graph]:
        trained = None if example_inputs is None else readers_in_training(model, example_inputs)
        return [graph, trained] if trained is not None else [graph]

    return runs


def _placed(
    site: Site, flow: Flow, model: nn.Module, nodes: list[fx.Node], runs: list[fx.Graph]
) -> Site | str:
    """The site with what is to be watched around it, or the reason why it cannot be converted where it is."""
    reason = weight_readers(model, runs, site.names)
    if reason is not None:
        return reason
    if site.kind == "pixel_shuffle":
        return site
    place = enclosing(flow, model, site.names, nodes)
    return place if isinstance(place, str) else replace(site, options={**site.options, **place})


def _kind(flow: Flow, nodes: list[fx.Node]) -> str:
    return "resize_conv" if any(_sources(flow, n) for n in nodes) else "pixel_shuffle"


def _sources(flow: Flow, call: fx.Node) -> frozenset[fx.Node]:
    blocks = flow.blocks.get(read_by(flow, call))
    return blocks.sources if blocks is not None else frozenset()


def _read_by_replacements(flow: Flow, model: nn.Module) -> set[fx.Node]:
    """The resizes that are read by what an earlier conversion put in a convolution's place."""
    names = {n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ConvReplacement)}
    read = {n for node in flow.ops if node.meta.get("owner") in names for n in node.all_input_nodes}
    return {source for node in read if node in flow.blocks for source in flow.blocks[node].sources}


def _resizes(
    flow: Flow, model: nn.Module, calls: Calls, used: set[fx.Node]
) -> tuple[list[Site], list[Skipped]]:
    """The resizes that no convolution takes up: those that can be converted by themselves, and the others."""
    names = qualified_names(model)
    sites: list[Site] = []
    skipped: list[Skipped] = []
    for path, nodes in calls.items():
        mine = [n for n in nodes if n in flow.resizes and n not in used]
        if not mine:
            continue
        module = model.get_submodule(path)
        answer = resize.match(flow, path, names[id(module)], module, mine) if len(mine) == len(nodes) else ""
        if isinstance(answer, Site):
            sites.append(answer)
            continue
        for node in mine:
            ends = ", ".join(sorted(set(flow.ends.get(node, ()))))
            read = "no convolution reads its result" + (f", which goes to {ends}" if ends else "")
            reason = flow.resizes[node] or read
            kind = type(module).__name__ if isinstance(module, nn.Upsample) else flow.ops[node].name
            skipped.append(Skipped(path, "resize", kind, reason))
    return sites, skipped


def _unchanging(
    model: nn.Module, flow: Flow, calls: Calls, sites: list[Site], runs: Callable[[], list[fx.Graph]],
    example_inputs: Any, notes: list[str],
) -> tuple[list[Site], list[Skipped]]:  # fmt: skip
    """The sites that are the same at another input size, and the others; where the resize's scale is given as
    a number there is no need to look."""
    doubtful = [
        site
        for site in sites
        if any(flow.ops[s].args["scale"] is None for n in calls[site.name] for s in _sources(flow, n))
    ]
    if not doubtful or example_inputs is None:
        return sites, []
    graph = at_another_size(model, example_inputs)
    if graph is None:
        notes.append("no other input size runs: resizes to a given size were seen at one size only")
        return sites, []
    there = analyse(graph, model)
    called = _calls(there, model)
    same = _convolutions(there, model, called, runs)[0]
    varying = [s for s in doubtful if s.name in called and s not in same]
    return [s for s in sites if s not in varying], [Skipped(s.name, s.kind, s.type, VARYING) for s in varying]
