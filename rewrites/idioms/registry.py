"""The two questions a conversion asks of a site of any kind: what transposed convolution is it, and what
takes its module's place."""

from __future__ import annotations

from torch import nn

from pixelize.rewrites.idioms import bilinear_conv, pixel_shuffle, resize, resize_conv, resize_conv_module
from pixelize.rewrites.site import Geometry, Site, TransposedConv, geometry_of

FUNCTIONAL = {"owner", "weight"}
"""Options of a site that is a call in somebody's forward."""


def check_site(site: Site, module: nn.Module) -> None:
    """Raises ValueError unless ``site`` is one that a survey of ``module`` could have found: it may come from
    a file.
    """
    own = {name: value for name, value in site.options.items() if name not in FUNCTIONAL}
    found: Geometry | str
    if site.kind == "conv_transpose" and isinstance(module, nn.ConvTranspose2d) and not own:
        found = geometry_of(module)
    elif isinstance(module, nn.Upsample) and site.kind == "resize" and resize.are_options(own):
        found = resize.geometry(site.geometry.in_channels, own)
    elif (
        isinstance(module, nn.Conv2d)
        and site.kind == "pixel_shuffle"
        and pixel_shuffle.are_options(own, module)
    ):
        found = pixel_shuffle.geometry(module, own["factor"])
    elif (
        isinstance(module, nn.Conv2d)
        and site.kind != "pixel_shuffle"
        and resize_conv.are_options(own, module)
    ):
        found = resize_conv.geometry(module, own)
    else:
        raise ValueError(f"no {site.kind} with the options {own}")
    if found != site.geometry:
        raise ValueError(f"its geometry is {found} here, and {site.geometry} there")
    names = {cls.__name__ for cls in type(module).__mro__} | {f"Parametrized{type(module).__name__}"}
    if site.type not in names | ({"conv2d", "conv_transpose2d"} if "owner" in site.options else set()):
        raise ValueError(f"its type is {site.type!r} there")


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
