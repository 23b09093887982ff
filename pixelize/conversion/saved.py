"""`save` and `load`: a folder of ``model.safetensors`` and ``pixelize.json`` turns a freshly built model into
the converted one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pixelize.adapters import connect
from pixelize.conversion.report import Report, SiteReport
from pixelize.conversion.saved_fit import check_fit, check_size, with_aliases
from pixelize.conversion.saved_folder import ATTEMPTS, SavedAnewError, SavedFiles, Shapes, write
from pixelize.conversion.saved_plan import SavedPlan, SavedSite, plan_of, to_text
from pixelize.errors import LoadError, PixelizeError
from pixelize.inheritance.build import build_layer, layer_name
from pixelize.inheritance.cost import count_parameters
from pixelize.inheritance.inherit import baked
from pixelize.inheritance.record import (
    Record,
    converted_modules,
    keep_report,
    new_record,
    record_of,
    refresh,
    remember,
)
from pixelize.layers.dependency_kernels import InputGated
from pixelize.layers.gate import set_gate
from pixelize.rewrites import Geometry, become, check_site, geometry_of, outline, state_of
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.modules import modules_of, tensors_of
from pixelize.running.models import check_model, uncompiled


def connect_pretrained(model: nn.Module | type) -> None:
    """Lets ``save_pretrained`` and ``from_pretrained`` of a library (diffusers, transformers, smp) know
    converted models, in this process: ``model`` is a class or a model of that library.

        pixelize.connect_pretrained(AutoencoderKL)
        vae = AutoencoderKL.from_pretrained("out/")  # where a converted model's save_pretrained wrote

    :func:`pixelize.convert` and :func:`load` do it for the model at hand, so a converted model is saved as it
    is. Only a process that begins with such a folder has to ask; unasked, the library refuses it.
    """
    connect(model, save, load, converted_modules)


@all_or_nothing
def save(model: nn.Module, folder: str | os.PathLike[str], *, source: str | None = None) -> Path:
    """Writes a converted or repaired model: ``model.safetensors`` (all its weights) and ``pixelize.json``
    (what was converted, and how; what was repaired).

    ``source`` is noted in the latter: the name by which the command line builds the model anew, such as
    ``smp:Linknet``.

    The folder is made if need be; the two files are replaced as one, whatever happens to this process: it
    loads as the old or as the new model. Other files are left alone. Returns the folder.

    Raises PixelizeError if the model was neither converted nor repaired, or has state that is no tensor;
    OSError if the disk refuses, and the folder is then as it was.
    """
    check_model(model)
    model = uncompiled(model)
    plan = plan_of(model)
    if not plan["sites"] and "repaired" not in plan:
        raise PixelizeError(
            f"this {type(model).__name__} has no converted layers to save, nor was it repaired; convert it "
            "first, or save its state_dict"
        )
    tensors, plan["aliases"] = _unique_tensors(model)
    if source is not None:
        plan["source"] = source
    write(Path(folder), tensors, lambda checksum: to_text({**plan, "sha256": checksum}))
    return Path(folder)


@all_or_nothing
def load(folder: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Makes ``into``, a freshly built model of the saved one's architecture, the converted and trained model,
    in place.

    Nothing is unpickled, and nothing is taken from the plan that the model and the weights do not bear out.
    Returns ``into``.

    Raises LoadError if the folder is missing a file, is damaged, or belongs to another model; ``into`` is
    then as it was.
    """
    check_model(into)
    model = uncompiled(into)
    for _ in range(ATTEMPTS):
        try:
            with Change(model) as transaction, SavedFiles(Path(folder)) as files:
                _load(model, files, transaction.will_write)
                connect_pretrained(model)
                return into
        except SavedAnewError:
            continue
    raise LoadError(f"{folder}: it is being saved all the time")


def _load(model: nn.Module, files: SavedFiles, will_write: Callable[[Tensor], None]) -> None:
    where, plan, shapes = str(files.folder), files.plan, files.shapes()
    own = set(map(id, tensors_of(model)))
    undo_outline = _outline(model, plan, where)
    try:
        _apply(model, plan, shapes, where)
        check_fit(model, with_aliases(shapes, plan, where), where)
        tensors = files.tensors()
        tensors.update({alias: tensors[name] for alias, name in plan.aliases.items()})
        for tensor in tensors_of(model):
            if id(tensor) in own:
                will_write(tensor)
        model.load_state_dict(tensors, assign=any(t.is_meta for t in model.state_dict().values()))
        for module in converted_modules(model).values():
            refresh(module)
        _attach_report(model, plan, where)
    except BaseException:
        undo_outline()
        raise


def _outline(model: nn.Module, plan: SavedPlan, where: str) -> Callable[[], None]:
    """Makes functional sites modules. Returns what undoes it."""
    if len(plan.sites) > sum(1 for _ in modules_of(model)) + sum(1 for _ in tensors_of(model)):
        raise LoadError(
            f"{where}: it lists {len(plan.sites)} modules, which this {type(model).__name__} does not have"
        )
    present = converted_modules(model)
    try:
        return outline(model, [s.site for s in plan.sites if s.site.name not in present])
    except ValueError as error:
        raise LoadError(f"{where}: it does not fit this {type(model).__name__} ({error})") from error


def _apply(model: nn.Module, plan: SavedPlan, shapes: Shapes, where: str) -> None:
    """Gives ``model`` the layers of a plan, with its own weights still in them."""
    like = next((t for t in tensors_of(model) if t.is_floating_point()), torch.zeros((), device="cpu"))
    modules = [_module(model, saved, plan, where) for saved in plan.sites]
    if len({id(module) for module in modules}) != len(modules):
        raise LoadError(f"{where}: a module is listed twice")
    made = [
        state_of(_converted(module, saved, shapes, like, where))
        for module, saved in zip(modules, plan.sites, strict=True)
    ]
    for module, state in zip(modules, made, strict=True):
        become(module, state)


def _module(model: nn.Module, saved: SavedSite, plan: SavedPlan, where: str) -> nn.Module:
    """The module of ``model`` that a site names."""
    site = saved.site
    for name in (site.name, *site.names):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise LoadError(
                f"{where}: it was saved from a {plan.model} with a module {name!r}, which this "
                f"{type(model).__name__} does not have"
            ) from None
        if module is not model.get_submodule(site.name):
            raise LoadError(f"{where}: {site.name} and {name} are one module there, and two here")
    return model.get_submodule(site.name)


def _converted(module: nn.Module, saved: SavedSite, shapes: Shapes, like: Tensor, where: str) -> nn.Module:
    """What ``module`` becomes: the layer of a plan with the module's own weights in it, where it has any for
    it.
    """
    site, geometry = saved.site, saved.site.geometry
    record = record_of(module)
    if record is not None:
        if (record.layer, record.design, record.site.geometry) != (saved.layer, saved.design, geometry):
            raise LoadError(
                f"{where}: {site.name} is converted already, into another layer; load into a freshly built "
                "model"
            )
        new = module
    else:
        if isinstance(module, _ConvTransposeNd) and geometry_of(module) != geometry:
            raise LoadError(
                f"{where}: {site.name} is {_told(geometry_of(module))} here, and {_told(geometry)} in the "
                "saved model"
            )
        source = module
        if f"{site.name}.weight" in shapes and isinstance(module, _ConvNd):
            source = baked(module)  # a norm that the saved layer did not keep
        try:
            check_site(site, source)
            check_size(saved, shapes)
            if site.kind == "resize":  # it has no weights of its own to tell where the model lies
                there = {"device": str(like.device), "dtype": str(like.dtype).removeprefix("torch.")}
                site = replace(site, options={**site.options, **there})
            new, _, _ = build_layer(site, source, saved.layer, saved.design, "zero")
        except Exception as error:
            raise LoadError(
                f"{where}: {site.name} is a {type(module).__name__} that does not fit the plan ({error})"
            ) from error
        inherits = saved.layer == "ipixeldcl" and site.kind in ("conv_transpose", "conv") and source is module
        origin = state_of(module) if inherits else None
        remember(new, new_record(site, saved.layer, saved.design, origin, new))
    for name, gate in saved.gates.items():
        layer = dict(new.named_modules()).get(name)
        if not isinstance(layer, InputGated):
            raise LoadError(f"{where}: {site.name} has no gate named {name!r}")
        set_gate(layer, gate)
    return new


def _told(g: Geometry) -> str:
    return f"{g.in_channels} to {g.out_channels} channels, kernel {g.kernel_size}, stride {g.stride}"


def _attach_report(model: nn.Module, plan: SavedPlan, where: str) -> None:
    rows = []
    for name, module in converted_modules(model).items():
        record: Record = record_of(module)  # type: ignore[assignment]
        site, layer = record.site, record.layer
        g = site.geometry
        rows.append(
            SiteReport(
                name, site.kind, site.type, "converted", site.names,
                layer_name(layer, len(g.stride), site.kind), in_channels=g.in_channels,
                out_channels=g.out_channels, kernel_size=g.kernel_size, stride=g.stride,
                parameters_after=count_parameters(module),
            )
        )  # fmt: skip
    notes = [f"loaded from {where}"] + [f"{name}: repaired before it was saved" for name in plan.repaired]
    report = Report(rows, "a saved plan", notes, parameters_after=count_parameters(model))
    keep_report(model, report)


def _unique_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise PixelizeError(
                f"{name}: a {type(value).__name__} in the state dict; only tensors can be saved"
            )
        if value.device.type == "meta":
            raise PixelizeError(f"{name}: it is on the meta device and has no values to save")
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        kept[name] = value.detach().to("cpu").contiguous()
    # two names for overlapping but different parts of one storage become two tensors of their own
    pointers: set[int] = set()
    for name, value in kept.items():
        if value.untyped_storage().data_ptr() in pointers:
            kept[name] = value.clone(memory_format=torch.contiguous_format)
        pointers.add(kept[name].untyped_storage().data_ptr())
    return kept, aliases
