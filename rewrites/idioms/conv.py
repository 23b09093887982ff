"""A convolution, which up-samples nothing: a pixel convolution (Gao et al., section 2.4) takes its place.

Found only where a caller asks for this kind of site.

    y = conv2d(x, W, stride=c)
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS, own_padding
from pixelize.rewrites.idioms.resize import is_factor
from pixelize.rewrites.site import Geometry, Site, TransposedConv

PERIOD = 2
"""Into how many phases a convolution's output is split along each axis."""


def site_of(module: _ConvNd, names: tuple[str, ...]) -> Site:
    """The site that a convolution is."""
    options = {"period": [PERIOD] * len(module.kernel_size)}
    return Site(names[0], names, "conv", type(module).__name__, geometry(module), options)


def geometry(module: _ConvNd) -> Geometry:
    """A convolution's own numbers; ``padding="same"`` of an even kernel as what comes before the input."""
    before = [d * (k - 1) // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    return Geometry(
        module.in_channels,
        module.out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        own_padding(module) or tuple(before),
        groups=module.groups,
        dilation=tuple(module.dilation),
        bias=module.bias is not None,
    )


def _stated(site: Site, options: Any, module: nn.Module) -> Geometry | None:
    assert isinstance(module, _ConvNd)
    n = len(module.kernel_size)
    return geometry(module) if options.keys() == {"period"} and is_factor(options["period"], (n,)) else None


def _canonical(site: Site, module: nn.Module) -> TransposedConv:
    raise TypeError(f"{site.name}: a convolution is no transposed convolution")


IDIOM = Idiom(
    "conv",
    "conv",
    None,
    lambda site, module: site.kind == "conv" and isinstance(module, CONVOLUTIONS),
    _stated,
    _canonical,
    lambda site, module, layer: layer,
)
