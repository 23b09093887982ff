"""All idioms, and the two questions that a conversion asks of a site of any of them.

A new idiom is a file with an :class:`~pixelize.rewrites.idioms.idiom.Idiom` in it, named here.
"""

from __future__ import annotations

from torch import fx, nn

from pixelize.rewrites.graph.flow import Flow
from pixelize.rewrites.idioms import (
    conv,
    conv_transpose,
    linear_conv,
    linear_shuffle,
    pixel_shuffle,
    resize,
    resize_conv_module,
)
from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.plain_conv import has_one_tap
from pixelize.rewrites.site import Site, TransposedConv

PLACE = {"owner", "weight", "bias", "settings", "watch", "graph"}
"""Options of a site that tell where it is: in whose forward it is a call, what is to be watched."""

_idioms: dict[str, Idiom] = {}


def register(idiom: Idiom) -> None:
    """Adds an idiom. Raises ValueError if there is one of its name."""
    if idiom.name in _idioms:
        raise ValueError(f"there is an idiom {idiom.name!r} already")
    _idioms[idiom.name] = idiom


def idioms() -> tuple[Idiom, ...]:
    """All idioms, in the order in which they are tried."""
    return tuple(_idioms.values())


for _module in (conv, conv_transpose, resize_conv_module, linear_conv, pixel_shuffle, linear_shuffle, resize):
    register(_module.IDIOM)


def idiom_of(site: Site, module: nn.Module) -> Idiom:
    """The idiom of a site whose module is ``module``. Raises TypeError if it is none's."""
    for idiom in _idioms.values():
        if idiom.owns(site, module):
            return idiom
    raise TypeError(f"{site.name}: a site of kind {site.kind} cannot be a {type(module).__name__}")


def matched(
    flow: Flow, name: str, names: tuple[str, ...], module: nn.Module, calls: list[fx.Node]
) -> Site | str | None:
    """The site that a convolution is, or the first reason why it cannot be one; None if it up-samples
    nothing."""
    reason = None
    for idiom in _idioms.values():
        if idiom.match is None or idiom.kind == "resize":
            continue
        answer = idiom.match(flow, name, names, module, calls)
        if isinstance(answer, Site):
            return answer
        reason = reason or answer
    return reason


def check_site(site: Site, module: nn.Module) -> None:
    """Raises ValueError unless ``site`` is one that a survey of ``module`` could have found: it may come from
    a file.
    """
    own = {name: value for name, value in site.options.items() if name not in PLACE}
    try:
        idiom = idiom_of(site, module)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if site.kind != idiom.kind and not (has_one_tap(module) and site.kind == "resize"):
        raise ValueError(f"a {type(module).__name__} is no site of kind {site.kind}")
    stated = idiom.stated(site, own, module)
    if stated is None:
        raise ValueError(f"no {site.kind} with the options {own}")
    if stated != site.geometry:
        raise ValueError(f"its geometry is {stated} here, and {site.geometry} there")
    names = {cls.__name__ for cls in type(module).__mro__} | {f"Parametrized{type(module).__name__}"}
    n = len(stated.stride)
    if site.type not in names | ({f"conv{n}d", f"conv_transpose{n}d"} if "owner" in site.options else set()):
        raise ValueError(f"its type is {site.type!r} there")


def canonical(site: Site, module: nn.Module) -> TransposedConv:
    """The site as one transposed convolution, its numbers taken (detached) from ``module``, the site's
    module."""
    return idiom_of(site, module).canonical(site, module)


def replacement(site: Site, module: nn.Module, layer: nn.Module) -> nn.Module:
    """What ``module`` becomes when ``layer``, a layer of the site's geometry, does its work.

    The layer itself where the module is a transposed convolution, otherwise a module that holds it as
    ``layer``.
    """
    return idiom_of(site, module).replacement(site, module, layer)
