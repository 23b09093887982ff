"""One way in which models up-sample, as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from pixelize.rewrites.graph.flow import Flow
from pixelize.rewrites.site import Geometry, Site, SiteKind, TransposedConv

Match = Callable[[Flow, str, tuple[str, ...], nn.Module, list[fx.Node]], "Site | str | None"]


@dataclass(frozen=True)
class Idiom:
    """One way in which models up-sample.

    ``kind``: of the sites that it makes. ``match(flow, name, names, module, calls)``: the site that a module
    is, given all its calls in a graph; the reason if it cannot be one; None if it is something else. None in
    its place where a look at the modules is enough (:mod:`pixelize.rewrites.finding.conv_transpose`).
    ``owns(site, module)``: whether a site is this idiom's. ``stated(site, options, module)``: the
    geometry that a site with these options has, a reason why there is none, None for options that ``match``
    never makes (they may come from a file). ``canonical(site, module)``: the site as one
    transposed convolution, its numbers taken (detached) from ``module``.
    ``replacement(site, module, layer)``: what ``module`` becomes when ``layer``, of the site's geometry, does
    its work.
    """

    name: str
    kind: SiteKind
    match: Match | None
    owns: Callable[[Site, nn.Module], bool]
    stated: Callable[[Site, Mapping[str, Any], nn.Module], Geometry | str | None]
    canonical: Callable[[Site, nn.Module], TransposedConv]
    replacement: Callable[[Site, nn.Module, nn.Module], nn.Module]
