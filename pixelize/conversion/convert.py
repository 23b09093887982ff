"""`inspect`, `convert` and `revert`: the plan is pure, and applying it is the only thing that touches a
model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import nn

from pixelize.adapters import call, find
from pixelize.conversion.report import Report, SiteReport, attach
from pixelize.errors import (
    ArgumentError,
    ConversionError,
    NothingToConvertError,
    PixelizeError,
    PixelizeWarning,
)
from pixelize.inheritance.build import build_layer, layer_name
from pixelize.inheritance.cost import count_parameters, measure_multiply_adds
from pixelize.inheritance.inherit import LAYERS, Design
from pixelize.inheritance.prior import prior_before
from pixelize.inheritance.prior_fit import InputPrior
from pixelize.inheritance.record import (
    Record,
    converted_modules,
    fingerprint,
    origin_of,
    remember,
    same_fingerprint,
)
from pixelize.rewrites import SITE_KINDS, Site, Survey, become, outline, state_of, survey
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.splice import State
from pixelize.running.models import check_model, copy_model, uncompiled
from pixelize.running.outputs import relative_error, tensors

DEFAULT_SITES = ("conv_transpose", "resize_conv", "pixel_shuffle")
Selection = str | Sequence[str] | Callable[[Site], bool]


def inspect(model: nn.Module, example_inputs: Any = None) -> Report:
    """Finds every up-sampling site of ``model``: what can be converted, what cannot and why. Changes nothing.

    Args:
        model: any module.
        example_inputs: what the model takes, a tensor, a tuple or a dict: lets it be captured as a graph,
            which finds resizes followed by convolutions and pixel shuffles in its forward, and counts
            multiply-adds. Without it a known library's adapter supplies them.
    """
    check_model(model)
    inner = uncompiled(model)
    found = _survey(inner, example_inputs)
    report = Report(capture=found.capture, notes=list(found.notes), parameters_before=count_parameters(inner))
    counts = {}
    if example_inputs is not None:
        counts = _run(inner, example_inputs, found.sites)[1]
    for site in found.sites:
        row = _row(site, inner)
        row.multiply_adds_before = counts.get(site.name)
        report.sites.append(row)
    report.sites += _skipped_rows(found)
    return report


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
    dependency_kernel_size: int | tuple[int, int] = 3,
    dependency_groups: int = 1,
    schedule: str = "paired",
    tolerance: float = 0.01,
) -> nn.Module:
    """Replaces the up-sampling layers of a trained model by pixel deconvolutions that inherit its weights.

    Args:
        model: any module. The returned model is of the same class, with its methods and attributes.
        layer: ``"ipixeldcl"`` (eq. 2 of Gao et al.: computes what the model computed before), ``"pixeldcl"``
            (eq. 3: only the first phase is inherited exactly), ``"auto"`` (at each site the cheapest design
            whose error on ``data`` stays within ``tolerance``, see
            :func:`pixelize.calibration.choose.choose_designs`) or ``"dcl"`` (one plain
            ``nn.ConvTranspose2d``, exact).
        init: ``"inherit"`` (from the weights alone), ``"calibrate"`` (fitted on ``data``) or ``"random"``.
        data: for ``init="calibrate"`` and ``layer="auto"``: an iterable of inputs, a tensor, tuple or dict
            each.
        example_inputs: what the model takes: lets it be captured as a graph, and both models be run and
            compared.
        include, exclude: fnmatch patterns on qualified names, or a predicate on a
            :class:`pixelize.rewrites.Site`.
        sites: the kinds of sites to convert; ``"resize"`` (a bare resize) only on request.
        inplace: convert ``model`` itself instead of a copy.
        dependency_kernel_size, dependency_groups, schedule: the design of the new layers
            (:class:`pixelize.iPixelDCL2d`). ``dependency_groups`` may be -1 for depthwise.
        tolerance: for ``layer="auto"``: the relative error that a site's output may have on samples that were
            not fitted.

    Returns:
        The converted model; :func:`pixelize.report` tells what was done.

    Raises:
        ArgumentError: an argument means nothing, or a pattern matches no site.
        NothingToConvertError: the model has no site that these arguments convert; the message lists what was
            found.
        ConversionError: a site could not be converted, or the outputs changed where they must not.
        In each case the model is as it was.
    """
    check_model(model)
    _check_arguments(layer, init, data, sites)
    if hasattr(model, "_orig_mod") and hasattr(model, "dynamo_ctx"):  # torch.compile(model)
        converted = convert(
            uncompiled(model), layer, init=init, data=data, example_inputs=example_inputs, include=include,
            exclude=exclude, sites=sites, inplace=inplace,
            dependency_kernel_size=dependency_kernel_size, dependency_groups=dependency_groups,
            schedule=schedule, tolerance=tolerance,
        )  # fmt: skip
        return model if inplace else type(model)(converted, model.dynamo_ctx)
    found = _survey(model, example_inputs)
    chosen = _choose(model, found, layer, include, exclude, sites)
    target = model if inplace else copy_model(model)
    if not chosen:
        warnings.warn(
            f"this {type(model).__name__} is converted already: nothing was changed; pixelize.report(model) "
            "tells what it is",
            PixelizeWarning,
            stacklevel=2,
        )
        return target
    size = dependency_kernel_size
    design = Design(
        (size, size) if isinstance(size, int) else (size[0], size[1]), dependency_groups, schedule
    )
    earlier = _earlier_rows(model)
    report = Report(capture=found.capture, notes=list(found.notes), parameters_before=count_parameters(model))
    if earlier:
        report.parameters_before = model.__dict__["_pixelize_report"].parameters_before
    before: Any = None
    counts_before: dict[str, int] = {}
    if example_inputs is not None:
        before, counts_before = _run(model, example_inputs, chosen)

    rows: dict[str, SiteReport] = {}
    unoutline = outline(target, chosen)
    undo: list[tuple[nn.Module, State]] = []
    try:
        swaps = []
        existing = list(target.modules())
        places = {id(module): place for place, module in enumerate(existing)}
        for site in chosen:
            module = target.get_submodule(site.name)
            prior = None
            if layer == "pixeldcl":
                prior = prior_before(existing, places[id(module)], site.geometry.in_channels)
            new, rows[site.name] = _build(
                site, module, "ipixeldcl" if layer == "auto" else layer, design, init, target, prior
            )
            rows[site.name].multiply_adds_before = counts_before.get(site.name)
            swaps.append((module, state_of(new)))
        undo = [(module, state_of(module)) for module, _ in swaps]
        for module, state in swaps:
            become(module, state)
        if init == "calibrate":
            from pixelize.calibration.fit_model import fit_model

            errors = fit_model(target, data)  # type: ignore[arg-type]
            for name, row in rows.items():
                row.error = errors.get(name, row.error)
        elif layer == "auto":
            from pixelize.calibration.choose import choose_designs

            choices = choose_designs(target, data, tolerance)  # type: ignore[arg-type]
            for name, choice in choices.items():
                rows[name].layer = choice.taken.name
                rows[name].error, rows[name].note = choice.taken.error, str(choice)
                rows[name].parameters_after = count_parameters(target.get_submodule(name))
        if example_inputs is not None:
            after, counts_after = _run(target, example_inputs, chosen)
            if all(t.device.type != "meta" for t in (*tensors(before), *tensors(after))):
                report.error = relative_error(before, after)
            for name, row in rows.items():
                row.multiply_adds_after = counts_after.get(name)
            if layer in ("ipixeldcl", "dcl") and init == "inherit" and report.error is not None:
                _check_unchanged(model, report.error)
    except BaseException:
        for module, state in undo:
            become(module, state)
        unoutline()
        raise
    for site in found.sites:
        report.sites.append(rows.get(site.name) or _left(site, target, layer, sites))
    report.sites += earlier.values()
    report.sites += [row for row in _skipped_rows(found) if row.name not in earlier]
    report.parameters_after = count_parameters(target)
    attach(target, report)
    return target


def _earlier_rows(model: nn.Module) -> dict[str, SiteReport]:
    """Of the sites that conversions before this one converted, by name."""
    report: Report | None = model.__dict__.get("_pixelize_report")
    still = converted_modules(model)
    return {row.name: replace(row) for row in report.converted if row.name in still} if report else {}


def revert(model: nn.Module) -> nn.Module:
    """Undoes a conversion that has not been trained, in place: every module is again what it was. Returns
    ``model``.

    Raises PixelizeError, leaving the model as it was, if it was never converted, was loaded from a folder
    without its original weights, or was trained since (``pixelize.fold`` gives a trained layer's one plain
    ``nn.ConvTranspose2d``).
    """
    check_model(model)
    converted = converted_modules(uncompiled(model))
    if not converted:
        raise PixelizeError(
            f"this {type(model).__name__} has nothing to revert: it was not converted by this package"
        )
    for name, module in converted.items():
        record: Record = module.__dict__["_pixelize_record"]
        if record.origin is None:
            raise PixelizeError(
                f"{name}: its original weights are not at hand (the model was loaded); use "
                "pixelize.fold(model)"
            )
        precise = all(p.dtype.itemsize >= 4 for p in module.parameters())
        if not same_fingerprint(record.fingerprint, fingerprint(module), 1e-5 if precise else 1e-2):
            raise PixelizeError(
                f"{name}: it was trained since its conversion, which cannot be undone; use "
                "pixelize.fold(model), or build the "
                "original model again"
            )
    for module in converted.values():
        kind, state = module.__dict__["_pixelize_record"].origin
        like = next(module.parameters())
        for registry in ("_parameters", "_buffers"):
            for key, value in state[registry].items():
                current = module.__dict__[registry].get(key)
                if value is None:
                    continue
                if current is not None and current.shape == value.shape:
                    state[registry][key] = current  # the same tensor, wherever it was moved since
                elif value.device != like.device or value.dtype != like.dtype:
                    value.data = value.data.to(like.device, like.dtype if value.is_floating_point() else None)
        for key, child in state["_modules"].items():
            if child is not None and module._modules.get(key) is not child:
                child.to(like.device, like.dtype)
        state["training"] = module.training
        become(module, (kind, state))
    uncompiled(model).__dict__.pop("_pixelize_report", None)
    return model


def _build(
    site: Site, module: nn.Module, layer: str, design: Design, init: str, model: nn.Module,
    prior: InputPrior | None,
) -> tuple[nn.Module, SiteReport]:  # fmt: skip
    start = "inherit" if init == "calibrate" else init
    try:
        new, error, note = build_layer(site, module, layer, design, start, prior)
    except PixelizeError:
        raise
    except Exception as failure:
        raise ConversionError(
            f"{site.name}: {type(failure).__name__}: {failure}. Leave it out with exclude={site.name!r}"
        ) from failure
    remember(new, Record(site, layer, design, origin_of(module), fingerprint(new)))
    row = _row(site, model)
    row.layer = layer_name(layer, len(site.geometry.stride))
    row.status, row.error, row.note = "converted", error, note
    row.parameters_after = count_parameters(new)
    return new, row


def _survey(model: nn.Module, example_inputs: Any) -> Survey:
    if example_inputs is None and (adapter := find(model)) is not None:
        try:
            example_inputs = adapter.example_inputs(model)
        except Exception as error:  # the adapter knows the library, not this variant of it
            found = survey(model, functional=True)
            note = f"the {adapter.name} adapter has no example inputs for it ({error}); pass example_inputs"
            return replace(found, notes=(*found.notes, note))
    return survey(model, example_inputs, functional=True)


def _row(site: Site, model: nn.Module) -> SiteReport:
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


def _skipped_rows(found: Survey) -> list[SiteReport]:
    return [SiteReport(s.name, s.kind, s.type, "skipped", (s.name,), reason=s.reason) for s in found.skipped]


def _left(site: Site, model: nn.Module, layer: str, sites: Sequence[str]) -> SiteReport:
    row = _row(site, model)
    row.status = "skipped"
    if layer == "dcl" and site.kind == "conv_transpose":
        row.reason = "a plain transposed convolution already"
    elif site.kind not in sites:
        row.reason = f"kind {site.kind!r} is not among sites"
    else:
        row.reason = "left out by include or exclude"
    return row


def _choose(
    model: nn.Module, found: Survey, layer: str, include: Selection, exclude: Selection, sites: Sequence[str]
) -> list[Site]:
    eligible = [
        s for s in found.sites if s.kind in sites and not (layer == "dcl" and s.kind == "conv_transpose")
    ]
    for argument, selection in (("include", include), ("exclude", exclude)):
        for pattern in _patterns(selection):
            if pattern != "*" and not any(_matches(s, pattern) for s in found.sites):
                raise ArgumentError(
                    f"{argument}={pattern!r} matches no site; the model has: {_listing(found) or 'none'}"
                )
    chosen = [s for s in eligible if _selected(s, include) and not _selected(s, exclude)]
    if chosen:
        return chosen
    if not found.sites and any("converted already" in s.reason for s in found.skipped):
        return []
    raise NothingToConvertError(_nothing(model, found, layer, sites, bool(eligible)))


def _nothing(model: nn.Module, found: Survey, layer: str, sites: Sequence[str], left_out: bool) -> str:
    lines = [f"nothing to convert in this {type(model).__name__} (seen through: {found.capture})."]
    for site in found.sites:
        if layer == "dcl" and site.kind == "conv_transpose":
            advice = (
                "a plain transposed convolution already: layer='ipixeldcl' or 'pixeldcl' would convert it"
            )
        elif site.kind not in sites:
            advice = f"would be converted with sites={(*sites, site.kind)!r}"
        else:
            advice = "left out by include or exclude"
        lines.append(f"  {site.name or '(the model)'}: {site.kind}, {advice}")
    lines += [f"  {s.name or '(the model)'}: {s.kind} ({s.type}), {s.reason}" for s in found.skipped]
    if not found.sites and not found.skipped:
        lines.append("  No up-sampling layer was found.")
    if found.capture == "modules" and not left_out:
        lines.append(
            "  Pass example_inputs=... so that resizes and pixel shuffles in its forward can be seen too."
        )
    return "\n".join(lines + [f"  note: {note}" for note in found.notes])


def _patterns(selection: Selection) -> list[str]:
    if callable(selection):
        return []
    return [selection] if isinstance(selection, str) else list(selection)


def _matches(site: Site, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in site.names)


def _selected(site: Site, selection: Selection) -> bool:
    if callable(selection):
        return bool(selection(site))
    return any(_matches(site, pattern) for pattern in _patterns(selection))


def _listing(found: Survey) -> str:
    return ", ".join(s.name or "(the model)" for s in found.sites)


def _run(model: nn.Module, inputs: Any, sites: Iterable[Site]) -> tuple[Any, dict[str, int]]:
    existing = dict(model.named_modules(remove_duplicate=False))
    modules = {s.name: existing[s.name] for s in sites if s.name in existing}
    with evaluation(model):
        try:
            return measure_multiply_adds(modules, lambda: call(model, inputs))
        except Exception as error:
            raise ArgumentError(
                f"the model could not be run on example_inputs: {type(error).__name__}: {error}"
            ) from error


def _check_unchanged(model: nn.Module, error: float) -> None:
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    allowed = 1e4 * torch.finfo(kind).eps if kind.itemsize >= 4 else 100 * torch.finfo(kind).eps
    if not error <= allowed:
        raise ConversionError(
            f"the converted model's output differs by {error:.2g} (relative), more than rounding explains; "
            "nothing was changed. "
            "Please report the model; include or exclude can narrow down the site"
        )


def _check_arguments(layer: str, init: str, data: Any, sites: Sequence[str]) -> None:
    layers = (*LAYERS, "auto", "dcl")
    if layer not in layers:
        raise ArgumentError(f"layer is {layer!r}; choose one of {', '.join(map(repr, layers))}")
    if init not in ("inherit", "calibrate", "random"):
        raise ArgumentError(f"init is {init!r}; choose one of 'inherit', 'calibrate', 'random'")
    if isinstance(sites, str):
        raise ArgumentError(f"sites is the string {sites!r}; pass a tuple such as ({sites!r},)")
    unknown = [s for s in sites if s not in SITE_KINDS]
    if unknown:
        raise ArgumentError(f"sites has {unknown[0]!r}; choose from {', '.join(map(repr, SITE_KINDS))}")
    if init == "calibrate" and data is None:
        raise ArgumentError(
            "init='calibrate' needs data: an iterable of inputs (a tensor, tuple or dict each)"
        )
    if layer == "auto" and data is None:
        raise ArgumentError(
            "layer='auto' needs data to measure on: an iterable of inputs (a tensor, tuple or dict each)"
        )
    if layer == "auto" and init != "inherit":
        raise ArgumentError(
            f"layer='auto' fits what it chooses: there is nothing for init={init!r} to do; leave it out"
        )
    if layer != "auto" and init != "calibrate" and data is not None:
        raise ArgumentError(f"data is not used with init={init!r}; leave it out, or pass init='calibrate'")
    if layer == "dcl" and init != "inherit":
        raise ArgumentError(f"layer='dcl' is exact: there is nothing for init={init!r} to do; leave it out")
