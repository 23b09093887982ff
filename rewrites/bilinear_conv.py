"""Bilinear resize, then convolution: a transposed convolution where the convolution does not zero-pad.

    conv2d(interpolate(x, scale_factor=s, mode="bilinear"), W)  ==  conv_transpose2d(pad(x, q, "replicate"),
    W', stride=s)

A bilinear resize (``align_corners=False``) by an integer is a depthwise transposed convolution of x with its
edge repeated, so W' is its triangular kernel convolved with the flipped W. Beyond the border the resized
picture goes on as its edge does: a convolution that pads nothing, or repeats the edge (``replicate``), sees
just that and the identity is exact; one that pads with zeros does not.

The small picture cannot be read off the resized one, so the resize must leave the graph: this is a pass on a
``GraphModule`` (:class:`pixelize.rewrites.passes.BilinearConvToConvTranspose`), no swap of one module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from pixelize.rewrites.resize import taps
from pixelize.rewrites.resize_conv import conv_refusal, own_padding
from pixelize.rewrites.site import Geometry, TransposedConv
from pixelize.rewrites.vocabulary import Op, describe


def pairs(graph_module: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """The calls of convolution modules that alone read a bilinear resize, and that resize, where the identity
    is exact."""
    calls = [n for n in graph_module.graph.nodes if n.op == "call_module"]
    found = []
    for call in calls:
        module = graph_module.get_submodule(str(call.target))
        source = call.args[0] if call.args else None
        if not isinstance(module, nn.Conv2d) or not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        if sum(n.target == call.target for n in calls) == 1 and _is_exact(
            module, describe(source, graph_module)
        ):
            found.append((call, source))
    return found


def _is_exact(module: nn.Conv2d, op: Op) -> bool:
    if op.kind != "resize" or op.args["mode"] != "bilinear" or op.args["align_corners"]:
        return False
    scale, padding = op.args["scale"], own_padding(module)
    if scale is None or any(not isinstance(v, int | float) or v != int(v) or v < 2 for v in scale):
        return False
    if padding is None or conv_refusal(module) is not None or tuple(module.dilation) != (1, 1):
        return False
    return not any(padding) or module.padding_mode == "replicate"


def canonical(module: nn.Conv2d, op: Op) -> tuple[TransposedConv, tuple[int, int, int, int]]:
    """The transposed convolution, and by how many pixels (left, right, top, bottom) its input's edge is
    repeated."""
    factor = [int(v) for v in op.args["scale"]]
    padding = own_padding(module)
    assert padding is not None
    weight, groups = module.weight.detach(), module.groups
    c_out, c_in, kh, kw = weight.shape
    triangle = [torch.tensor(taps(s, True), dtype=torch.float64, device=weight.device) for s in factor]
    grouped = weight.double().reshape(groups, c_out // groups, c_in, kh, kw).transpose(1, 2)
    flat = grouped.reshape(-1, 1, kh, kw).flip(-2, -1)
    full = F.conv_transpose2d(flat, (triangle[0][:, None] * triangle[1])[None, None])
    full = full.reshape(groups * c_in, c_out // groups, *full.shape[-2:]).to(weight.dtype)
    kernel = (full.shape[2], full.shape[3])
    # one pixel of edge for the triangles, ceil(p / s) more for the convolution's own padding
    edge = [1 + -(-padding[i] // factor[i]) for i in (0, 1)]
    size = [len(triangle[i]) for i in (0, 1)]
    crop = [
        (size[i] - factor[i]) // 2 + edge[i] * factor[i] - padding[i] + module.kernel_size[i] - 1
        for i in (0, 1)
    ]
    geometry = Geometry(
        module.in_channels,
        module.out_channels,
        kernel,
        (factor[0], factor[1]),
        (crop[0], crop[1]),
        groups=groups,
        bias=module.bias is not None,
    )
    bias = None if module.bias is None else module.bias.detach().clone()
    return TransposedConv(geometry, full, bias), (edge[1], edge[1], edge[0], edge[0])
