"""The two questions a conversion asks of a site of any kind: what transposed convolution is it, and what
takes its module's place."""

from __future__ import annotations

from torch import nn

from pixelize.rewrites.idioms import bilinear_conv, pixel_shuffle, resize, resize_conv, resize_conv_module
from pixelize.rewrites.site import Site, TransposedConv


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The site as one transposed convolution, its numbers taken (detached) from ``module``, the site's
    module."""
    if isinstance(module, nn.ConvTranspose2d):
        bias = None if module.bias is None else module.bias.detach()
        return TransposedConv(site.geometry, module.weight.detach(), bias)
    if isinstance(module, nn.Upsample):
        return resize.canonical(site)
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"{site.name}: a site of kind {site.kind} cannot be a {type(module).__name__}")
    if site.kind == "pixel_shuffle":
        return pixel_shuffle.canonical(site, module)
    return resize_conv.canonical(site, module)


def replacement(site: Site, module: nn.Module, layer: nn.Module) -> nn.Module:
    """What ``module`` becomes when ``layer``, a layer of the site's geometry, does its work.

    The layer itself where the module is a transposed convolution, otherwise a module that holds it as
    ``layer``.
    """
    if isinstance(module, nn.ConvTranspose2d):
        return layer
    if isinstance(module, nn.Upsample):
        return resize.ResizeTransposed2d(layer, site.options)
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"{site.name}: a site of kind {site.kind} cannot be a {type(module).__name__}")
    if site.kind == "pixel_shuffle":
        return pixel_shuffle.ShuffleConv2d(layer, module, site.options)
    if resize_conv.is_bilinear(site.options):
        return bilinear_conv.BilinearConv2d(layer, module, site.options)
    return resize_conv_module.ResizeConv2d(layer, module, site.options)
