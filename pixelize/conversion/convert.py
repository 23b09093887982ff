"""`convert`: a plan is made, which is pure; applying it is the only thing that touches a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pixelize.calibration.choose import choose_designs
from pixelize.calibration.fit_model import fit_model
from pixelize.conversion.apply import apply_plan
from pixelize.conversion.plan import Plan, known_inputs, look, plan_conversion, site_row, skipped_row
from pixelize.conversion.report import Report, SiteReport
from pixelize.conversion.request import DEFAULT_SITES, Request, Selection, check_request, site_kinds
from pixelize.conversion.saved import connect_pretrained
from pixelize.conversion.verify import (
    Observed,
    check_unchanged,
    observe,
    observe_other_size,
    told_not_finite,
)
from pixelize.errors import ArgumentError, PixelizeWarning
from pixelize.inheritance.cost import count_parameters
from pixelize.inheritance.inherit import Design
from pixelize.inheritance.record import converted_modules, keep_report, kept_report
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.precision import full_precision
from pixelize.running.models import check_model, copy_model, uncompiled
from pixelize.running.outputs import relative_error


@all_or_nothing
def convert(
    model: nn.Module,
    layer: str = "ipixeldcl",
    *,
    init: str = "inherit",
    data: Iterable[Any] | None = None,
    example_inputs: Any = None,
    include: Selection = "*",
    exclude: Selection = (),
    sites: Sequence[str] = DEFAULT_SITES,
    inplace: bool = False,
    dependency_kernel_size: int | tuple[int, ...] = 3,
    dependency_groups: int = 1,
    schedule: str = "paired",
    tolerance: float = 0.01,
) -> nn.Module:
    """Replaces the up-sampling layers of a trained model by pixel deconvolutions that inherit its weights.

    A conversion that should change nothing is checked: the model is run before and after on
    ``example_inputs``, or on those that its library's adapter makes, and at another input size where it takes
    one.

    Args:
        model: any module. The returned model is of the same class, with its methods and attributes.
        layer: ``"ipixeldcl"`` (eq. 2 of Gao et al.: computes what the model computed before), ``"pixeldcl"``
            (eq. 3: only the first phase is inherited exactly), ``"auto"`` (at each site the cheapest design
            whose error on ``data`` stays within ``tolerance``, see
            :func:`pixelize.calibration.choose.choose_designs`) or ``"dcl"`` (one plain
            transposed convolution, exact).
        init: ``"inherit"`` (from the weights alone), ``"calibrate"`` (fitted on ``data``) or ``"random"``.
        data: for ``init="calibrate"`` and ``layer="auto"``: an iterable of inputs, a tensor, tuple or dict
            each.
        example_inputs: what the model takes: lets it be captured as a graph, and both models be run and
            compared.
        include: the sites to convert: fnmatch patterns on qualified names, or a predicate on a
            :class:`pixelize.rewrites.Site`.
        exclude: the sites to leave, likewise.
        sites: the kinds of sites to convert; ``"resize"`` (a bare resize), ``"conv"`` (a convolution of
            more than one tap, which becomes an iPixelConv, or, by ``layer="pixeldcl"`` and
            ``init="calibrate"``, a PixelConv) and ``"conv_after_upsampling"`` (of those the ones
            that read what an up-sampler made, with nothing between that mixes pixels) only on request.
        inplace: convert ``model`` itself instead of a copy.
        dependency_kernel_size: the window of the new layers' dependency kernels
            (:class:`pixelize.iPixelDCL2d`).
        dependency_groups: their groups; -1 for depthwise.
        schedule: the order of their stages.
        tolerance: for ``layer="auto"``: the relative error that a site's output may have on samples that were
            not fitted.

    Returns:
        The converted model; :func:`pixelize.report` tells what was done.

    Raises:
        ArgumentError: an argument means nothing, or a pattern matches no site.
        NothingToConvertError: the model has no site that these arguments convert; the message lists what was
            found.
        ConversionError: a site could not be converted, or the outputs changed where they must not. In each
            case the model is as it was.
    """
    check_model(model)
    size = dependency_kernel_size
    design = Design((size,) if isinstance(size, int) else tuple(size), dependency_groups, schedule)
    request = Request(layer, init, design, site_kinds(sites), include, exclude, tolerance)
    check_request(request, data)
    inner = uncompiled(model)
    inputs, notes = known_inputs(inner, example_inputs)
    plan = plan_conversion(inner, request, look(inner, inputs, notes, request.convolutions))
    target = inner if inplace else copy_model(inner)
    with Change(target), full_precision():
        if plan.planned:
            _carry_out(plan, request, target, data, inputs, given=example_inputs is not None)
        else:
            warnings.warn(
                f"this {type(model).__name__} is converted already: nothing was changed; "
                "pixelize.report(model) tells what it is",
                PixelizeWarning,
                stacklevel=3,
            )
        connect_pretrained(target)
        if inner is model:
            return target
        return model if inplace else type(model)(target, model.dynamo_ctx)  # compiled


def _carry_out(plan: Plan, request: Request, target: nn.Module, data: Any, inputs: Any, given: bool) -> None:
    """Applies a plan, fits what is to be fitted, compares, and attaches the report."""
    report = Report(capture=plan.capture, notes=list(plan.notes), parameters_before=count_parameters(target))
    earlier, former = _earlier_rows(target), kept_report(target)
    if earlier and former is not None:
        report.parameters_before = former.parameters_before
    before = _observed(plan, request, target, inputs, given, report.notes)
    rows = apply_plan(plan, target)
    _fit(request, target, data, rows)
    if given:
        after = observe(target, inputs, plan.sites)
        for name, row in rows.items():
            row.multiply_adds_before = before[0].multiply_adds.get(name)
            row.multiply_adds_after = after.multiply_adds.get(name)
        if before[0].has_numbers:
            report.error = relative_error(before[0].outputs, after.outputs)
    if request.exact:
        errors = [check_unchanged(target, observed) for observed in before]
        report.error = report.error if given else next(iter(errors), None)
    report.sites = [rows[site.name] for site in plan.sites]
    for site, reason in plan.left:
        report.sites.append(site_row(site, target))
        report.sites[-1].status, report.sites[-1].reason = "skipped", reason
    report.sites += earlier.values()
    report.sites += [skipped_row(s) for s in plan.skipped if s.name not in earlier]
    report.parameters_after = count_parameters(target)
    if unknown := told_not_finite(target, before):
        report.notes.append(unknown)
        warnings.warn(unknown, PixelizeWarning, stacklevel=4)
    keep_report(target, report)


def _observed(
    plan: Plan, request: Request, target: nn.Module, inputs: Any, given: bool, notes: list[str]
) -> list[Observed]:
    """The model before its conversion, at one or two input sizes; nothing where it cannot be run on inputs
    that are not the caller's.
    """
    if inputs is None or not (given or request.exact):
        return []
    try:
        observed = [observe(target, inputs, plan.sites, rounding=request.exact)]
    except ArgumentError as error:
        if given:
            raise
        notes.append(f"not verified: {error}")
        return []
    # a transposed convolution is the same at every size; what follows a resize need not be
    if request.exact and any(site.kind not in ("conv_transpose", "conv") for site in plan.sites):
        other = observe_other_size(target, inputs, plan.sites)
        observed += [other] if other is not None else []
    return observed


def _fit(request: Request, target: nn.Module, data: Any, rows: dict[str, SiteReport]) -> None:
    """What ``init="calibrate"`` and ``layer="auto"`` do to the layers, and what they tell of them."""
    if request.init == "calibrate":
        errors = fit_model(target, data)
        for name, row in rows.items():
            row.error = errors.get(name, row.error)
    elif request.layer == "auto":
        for name, choice in choose_designs(target, data, request.tolerance).items():
            row = rows[name]
            row.layer, row.error, row.note = choice.taken.name, choice.taken.error, str(choice)
            row.parameters_after = count_parameters(target.get_submodule(name))


def _earlier_rows(model: nn.Module) -> dict[str, SiteReport]:
    """Of the sites that conversions before this one converted, by name."""
    report: Report | None = kept_report(model)
    still = converted_modules(model)
    return {row.name: replace(row) for row in report.converted if row.name in still} if report else {}
