"""A transposed convolution: the canonical form itself.

``y = conv_transpose2d(x, W)``; the layer takes the module's place as it is.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.site import Site, TransposedConv, geometry_of


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The module's own weight and bias."""
    assert isinstance(module, _ConvTransposeNd)
    bias = None if module.bias is None else module.bias.detach()
    return TransposedConv(site.geometry, module.weight.detach(), bias)


IDIOM = Idiom(
    "conv_transpose",
    "conv_transpose",
    None,
    lambda site, module: isinstance(module, _ConvTransposeNd),
    lambda site, options, module: None if options else geometry_of(module),  # type: ignore[arg-type]
    canonical,
    lambda site, module, layer: layer,
)
