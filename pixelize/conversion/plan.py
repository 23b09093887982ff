"""The plan of a conversion: what was found, what each site is to become, and why the others are left.

Making one looks at a model and changes nothing; :mod:`pixelize.conversion.apply` is what touches a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from pixelize.adapters import find
from pixelize.conversion.report import Report, SiteReport
from pixelize.conversion.request import Request
from pixelize.conversion.select import nothing_selected, reason_left, select, site_name
from pixelize.errors import ArgumentError, NothingToConvertError
from pixelize.inheritance.build import layer_name
from pixelize.inheritance.cost import count_parameters
from pixelize.inheritance.inherit import Design
from pixelize.rewrites import Convolutions, Site, Skipped, Survey, survey
from pixelize.rewrites.state.modules import placed


@dataclass(frozen=True)
class PlannedSite:
    """One site, the layer that takes its place (as ``convert`` names it), its design, and how it starts."""

    site: Site
    layer: str
    design: Design
    init: str


@dataclass(frozen=True)
class Plan:
    """What a conversion will do to a model: plain, frozen data.

    ``planned``: the sites that are converted, in the order of the survey. ``left``: the sites that could be
    and are not, with the reason. ``skipped``: what up-samples and cannot be converted. ``capture`` and
    ``notes`` tell how the model was seen.
    """

    model: str
    planned: tuple[PlannedSite, ...]
    left: tuple[tuple[Site, str], ...]
    skipped: tuple[Skipped, ...]
    capture: str
    notes: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are converted."""
        return tuple(p.site for p in self.planned)

    def __str__(self) -> str:
        lines = [f"{self.model}, seen through: {self.capture}"]
        for p in self.planned:
            into = layer_name(p.layer, len(p.site.geometry.stride), p.site.kind)
            if p.layer != "dcl":
                window = "x".join(map(str, p.design.kernel_size))
                into += f" ({p.design.schedule}, {window}, {p.init})"
            lines.append(f"{site_name(p.site.name)}: {p.site.kind} ({p.site.type}) > {into}")
        lines += [f"{site_name(s.name)}: {s.kind} ({s.type}), left: {reason}" for s, reason in self.left]
        lines += [f"{site_name(s.name)}: {s.kind} ({s.type}), skipped: {s.reason}" for s in self.skipped]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def known_inputs(model: nn.Module, example_inputs: Any) -> tuple[Any, tuple[str, ...]]:
    """``example_inputs``, or those that the model's adapter makes; and a note where it makes none."""
    if example_inputs is not None or (adapter := find(model)) is None:
        return placed(example_inputs, model), ()
    try:
        return adapter.example_inputs(model), ()
    except Exception as error:  # the adapter knows the library, not this variant of it
        note = f"the {adapter.name} adapter has no example inputs for it ({error}); pass example_inputs"
        return None, (note,)


def look(model: nn.Module, inputs: Any, notes: tuple[str, ...], convolutions: Convolutions = None) -> Survey:
    """All sites of a model, functional ones among them; changes nothing. ``convolutions``: which
    of those that up-sample nothing too."""
    seen = survey(model, inputs, functional=True, convolutions=convolutions)
    return replace(seen, notes=(*seen.notes, *notes))


def plan_conversion(model: nn.Module, request: Request, survey: Survey) -> Plan:
    """The plan of a request for a model and what a survey found in it; pure.

    A plan without sites is that of a model that was converted already. Raises ArgumentError for a pattern
    that matches nothing, NothingToConvertError where there is nothing that the request converts.
    """
    chosen = select(survey, request)
    converted = not survey.sites and any("converted already" in s.reason for s in survey.skipped)
    if not chosen and not converted:
        raise NothingToConvertError(nothing_selected(type(model).__name__, survey, request))
    planned = tuple(
        PlannedSite(s, request.first_layer, _design_for(s, request.design), request.first_init)
        for s in chosen
    )
    left = tuple((s, reason_left(s, request)) for s in survey.sites if s not in chosen)
    return Plan(type(model).__name__, planned, left, survey.skipped, survey.capture, survey.notes)


def _design_for(site: Site, design: Design) -> Design:
    """The design with a window of as many axes as the site has. Raises ArgumentError."""
    window, axes = design.kernel_size, len(site.geometry.stride)
    if len(window) == 1:
        return replace(design, kernel_size=window * axes)
    if len(window) != axes:
        raise ArgumentError(
            f"{site_name(site.name)}: dependency_kernel_size is {window}, and it has {axes} axes; pass one "
            "number for all axes, or leave it out with exclude"
        )
    return design


def site_row(site: Site, model: nn.Module) -> SiteReport:
    """A site as a row of a report, with the parameters that it has in ``model``."""
    g = site.geometry
    if "owner" in site.options:  # no module yet, or no longer what it was
        own = g.in_channels * g.out_channels // g.groups * prod(g.kernel_size) + g.bias * g.out_channels
    else:
        own = count_parameters(model.get_submodule(site.name))
    return SiteReport(
        site.name, site.kind, site.type, "found", site.names,
        in_channels=g.in_channels, out_channels=g.out_channels, kernel_size=g.kernel_size, stride=g.stride,
        parameters_before=own,
    )  # fmt: skip


def skipped_row(skipped: Skipped) -> SiteReport:
    """What cannot be converted as a row of a report."""
    return SiteReport(
        skipped.name, skipped.kind, skipped.type, "skipped", (skipped.name,), reason=skipped.reason
    )


def report_found(model: nn.Module, survey: Survey) -> Report:
    """What was found in a model, as a report; nothing is converted."""
    report = Report(
        capture=survey.capture, notes=list(survey.notes), parameters_before=count_parameters(model)
    )
    report.sites = [site_row(site, model) for site in survey.sites]
    report.sites += map(skipped_row, survey.skipped)
    return report
