"""Convolutions that a forward calls as functions, with a parameter for their weight."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.graph.flow import Flow, read_by
from pixelize.rewrites.graph.operators import Op
from pixelize.rewrites.graph.own_forward import attribute_of, functional_calls, module_name, traced
from pixelize.rewrites.idioms import resize_conv
from pixelize.rewrites.site import Site, Skipped, geometry_of


def scan_functional(model: nn.Module, flow: Flow) -> tuple[list[Site], list[Skipped]]:
    """Every transposed convolution of a graph that no ``nn.ConvTranspose2d`` runs, and every convolution of a
    resized picture that no ``nn.Conv2d`` runs: those that :func:`outline` can make one, and the others."""
    sites: dict[str, Site] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    for node, op in flow.ops.items():
        transposed = op.kind == "conv_transpose"
        if "module" in op.args or not (
            transposed or (op.kind == "conv" and read_by(flow, node) in flow.blocks)
        ):
            continue
        owner = str(node.meta.get("owner", ""))
        module = model.get_submodule(owner)
        if isinstance(module, _ConvNd):  # a module's own call
            continue
        found = _site(model, owner, module, op, flow)
        if isinstance(found, Site):
            sites[found.name] = found
        elif found:
            kind = "conv_transpose" if transposed else "resize_conv"
            skipped[owner, found] = Skipped(owner, kind, op.name, found)
    return list(sites.values()), list(skipped.values())


def _site(model: nn.Module, owner: str, module: nn.Module, op: Op, flow: Flow) -> Site | str:
    path = op.args["weight"].meta.get("state") if isinstance(op.args["weight"], fx.Node) else None
    if path is None:
        return (
            "its weight is computed at run time (modulated or demodulated for each sample): there is no one "
            "kernel to inherit"
        )
    if not isinstance(attribute_of(model, path), nn.Parameter):
        return "its weight is a buffer, a fixed filter and nothing learned"
    prefix = f"{owner}." if owner else ""
    if not path.startswith(prefix):
        return f"its weight {path} belongs to another module"
    try:
        calls = functional_calls(module, traced(module))
    except Exception as error:  # a stranger's forward may raise anything
        return (
            f"the forward of {type(module).__name__} cannot be traced symbolically ({type(error).__name__})"
        )
    weight = path.removeprefix(prefix)
    kind = nn.ConvTranspose2d if op.kind == "conv_transpose" else nn.Conv2d
    mine = [layer for name, layer in calls.values() if name == weight and isinstance(layer, kind)]
    if not mine:
        return f"the forward of {type(module).__name__} does not show the call to a symbolic trace"
    layer, name, where = mine[0], prefix + module_name(weight, op), {"owner": owner, "weight": weight}
    if isinstance(layer, nn.ConvTranspose2d):
        if tuple(layer.stride) == (1, 1):
            return "stride 1 does not up-sample"
        return Site(name, (name,), "conv_transpose", "conv_transpose2d", geometry_of(layer), where)
    nodes = [n for n, o in flow.ops.items() if o.kind == "conv" and o.args.get("weight") is op.args["weight"]]
    sources = [s for n in nodes if (b := flow.blocks.get(read_by(flow, n))) is not None for s in b.sources]
    if any(flow.ops[s].args["scale"] is None for s in sources):
        return "resized to a given size: whether its factor is the same at another size cannot be seen"
    found = resize_conv.match(flow, name, (name,), layer, nodes)
    if not isinstance(found, Site):
        return found or "not always after a resize"
    return replace(found, type="conv2d", options={**found.options, **where})
