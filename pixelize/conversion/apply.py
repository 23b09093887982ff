"""Applying a plan: the only thing in a conversion that touches a model."""

from __future__ import annotations

from torch import nn

from pixelize.conversion.plan import Plan, PlannedSite, site_row
from pixelize.conversion.report import SiteReport
from pixelize.errors import ConversionError, PixelizeError
from pixelize.inheritance.build import build_layer, layer_name
from pixelize.inheritance.cost import count_parameters
from pixelize.inheritance.prior import prior_before
from pixelize.inheritance.record import new_record, origin_of, remember
from pixelize.rewrites import become, outline, state_of
from pixelize.rewrites.state.modules import modules_of


def apply_plan(plan: Plan, model: nn.Module) -> dict[str, SiteReport]:
    """Puts the plan's layers into ``model``, in place, and returns a row for each by the site's name.

    To be called inside :func:`pixelize.rewrites.state.change.change`, which undoes it if it fails. Every
    layer is built before the first one is put in. Raises ConversionError with the name of the module.
    """
    outline(model, plan.sites)
    existing = list(modules_of(model))
    places = {id(module): place for place, module in enumerate(existing)}
    rows, built = {}, []
    for planned in plan.planned:
        module = model.get_submodule(planned.site.name)
        prior = None
        if planned.layer == "pixeldcl" and planned.site.kind != "conv":
            prior = prior_before(existing, places[id(module)], planned.site.geometry.in_channels)
        new, error, note = _built(planned, module, prior)
        row = site_row(planned.site, model)
        row.layer = layer_name(planned.layer, len(planned.site.geometry.stride), planned.site.kind)
        row.status, row.error, row.note = "converted", error, note
        row.parameters_after = count_parameters(new)
        rows[planned.site.name] = row
        built.append((module, state_of(new)))
    for module, state in built:
        become(module, state)
    return rows


def _built(
    planned: PlannedSite, module: nn.Module, prior: object
) -> tuple[nn.Module, float | None, str | None]:
    site = planned.site
    try:
        new, error, note = build_layer(site, module, planned.layer, planned.design, planned.init, prior)  # type: ignore[arg-type]
    except PixelizeError:
        raise
    except Exception as failure:
        raise ConversionError(
            f"{site.name}: {type(failure).__name__}: {failure}. Leave it out with exclude={site.name!r}"
        ) from failure
    remember(new, new_record(site, planned.layer, planned.design, origin_of(module), new))
    return new, error, note
