"""The rewrites as torch.fx passes: a ``GraphModule`` in, a ``PassResult`` out, usable without the rest of the
package.

    from torch.fx.passes.infra.pass_manager import PassManager
    result = PassManager([OutlineConvTranspose(), ResizeConvToConvTranspose()])(fx.symbolic_trace(model))

Each pass turns one idiom into plain ``nn.ConvTranspose2d`` modules, exactly. They share the matchers with
:func:`pixelize.rewrites.finding.survey`; given ``example_inputs`` they know shapes, and see through
concatenations too.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from pixelize.rewrites.applying.outline import outline
from pixelize.rewrites.finding.survey import survey
from pixelize.rewrites.graph.operators import describe
from pixelize.rewrites.graph.resize_factor import spread
from pixelize.rewrites.idioms.plain_conv import own_padding
from pixelize.rewrites.idioms.registry import canonical, replacement
from pixelize.rewrites.idioms.resize_conv import edge_of, is_linear
from pixelize.rewrites.idioms.resize_conv_module import around_all
from pixelize.rewrites.site import CONV_TRANSPOSE, Site, TransposedConv
from pixelize.rewrites.state.splice import become, state_of


class _UpsamplingPass(PassBase):
    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, example_inputs: Any = None) -> None:
        super().__init__()
        self.example_inputs = example_inputs

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrites ``graph_module`` in place; ``modified`` says whether there was anything to rewrite."""
        sites = [s for s in survey(graph_module, self.example_inputs).sites if s.kind in self.kinds]
        for site in sites:
            module = graph_module.get_submodule(site.name)
            layer = plain_layer(canonical(site, module), module)
            if not _fused(graph_module, site, layer):
                outline(graph_module, [site])
                become(module, state_of(replacement(site, module, layer)))
        graph_module.recompile()
        return PassResult(graph_module, bool(sites))


class OutlineConvTranspose(PassBase):
    """``F.conv_transpose2d`` (or its aten operator) with a parameter for its weight becomes a call of an
    ``nn.ConvTranspose2d`` module.

    Before::

        def forward(self, x):
            w = self.up_w
            return torch.conv_transpose2d(x, w, stride=2)

    After::

        def forward(self, x):
            return self.up_w_conv_transpose(x)
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrites ``graph_module`` in place; ``modified`` says whether there was anything to rewrite."""
        sites = [s for s in survey(graph_module, functional=True).sites if "owner" in s.options]
        outline(graph_module, sites)
        return PassResult(graph_module, bool(sites))


class ResizeConvToConvTranspose(_UpsamplingPass):
    """A nearest or linear resize and the convolution that reads it become one transposed convolution.

    Before::

        def forward(self, x):
            u = interpolate(x, scale_factor=2)
            return self.conv(u)

    After, ``conv`` being an ``nn.ConvTranspose2d`` now::

        def forward(self, x):
            return self.conv(x)

    Where a skip is concatenated in between, or the resize has other readers, it stays, and the convolution's
    module becomes a :class:`pixelize.rewrites.idioms.resize_conv_module.ResizeConv`; likewise where a
    linear resize is zero-padded. Without that its convolution is ``Sequential(ReplicationPad2d,
    ConvTranspose2d)``.
    """

    kinds = ("resize_conv",)


class PixelShuffleToConvTranspose(_UpsamplingPass):
    """The convolution before a pixel shuffle becomes a transposed convolution, unshuffled again
    (:class:`pixelize.rewrites.idioms.pixel_shuffle.ShuffleConv`), so that what stands between the two sees
    what it saw."""

    kinds = ("pixel_shuffle",)


class ResizeToConvTranspose(_UpsamplingPass):
    """A bare ``nn.Upsample`` (nearest or bilinear, integer factor) becomes a depthwise transposed
    convolution."""

    kinds = ("resize",)


def plain_layer(form: TransposedConv, module: nn.Module) -> nn.ConvTranspose2d:
    """The ``nn.ConvTranspose2d`` that a canonical form describes, in ``module``'s mode."""
    g = form.geometry
    layer: nn.ConvTranspose2d = CONV_TRANSPOSE[len(g.stride)](
        g.in_channels,
        g.out_channels,
        g.kernel_size,
        g.stride,
        g.padding,
        g.output_padding,
        g.groups,
        g.bias,
        g.dilation,
        device="meta",
    )
    layer.weight = nn.Parameter(form.weight)
    if form.bias is not None:
        layer.bias = nn.Parameter(form.bias)
    return layer.train(module.training)


def _fused(graph_module: fx.GraphModule, site: Site, layer: nn.Module) -> bool:
    """Takes the resize out of the graph where it feeds this convolution alone; whether that could be done.

    Needs the resize directly before the convolution (nobody else uses it), by a number (so the factor holds
    at every size), over all channels, and the module called once.
    """
    calls = [n for n in graph_module.graph.nodes if n.op == "call_module" and str(n.target) in site.names]
    if site.kind != "resize_conv" or len(calls) != 1:
        return False
    source = calls[0].args[0] if calls[0].args else None
    if not isinstance(source, fx.Node) or len(source.users) != 1 or source.op == "placeholder":
        return False
    op = describe(source, graph_module)
    if op.kind != "resize" or op.args["scale"] is None:
        return False
    module = graph_module.get_submodule(str(calls[0].target))
    padding = own_padding(module)  # type: ignore[arg-type]
    if is_linear(site.options):
        if padding is None or (any(padding) and site.options["around"] != "replicate"):
            return False  # beyond the border the convolution sees something else than the edge gone on
        q = [edge_of(p, s) for p, s in zip(padding, site.options["factor"], strict=True)]
        pad = (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)[len(q) - 1]
        layer = nn.Sequential(pad(tuple(around_all(q))), layer).train(layer.training)  # type: ignore[arg-type]
    elif site.options["around"] != "zeros":
        return False
    scale = [int(v) for v in spread(op.args["scale"], len(site.options["factor"]))]
    if scale != list(site.options["factor"]):
        return False
    become(module, state_of(layer))
    calls[0].replace_input_with(source, op.args["input"])
    graph_module.graph.erase_node(source)
    return True
