"""`save` and `load`: a folder of ``model.safetensors`` and ``pixelize.json`` turns a freshly built model into
the converted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelize.conversion.report import Report, SiteReport
from pixelize.errors import LoadError, PixelizeError
from pixelize.inheritance.build import build_layer, layer_name
from pixelize.inheritance.cost import count_parameters
from pixelize.inheritance.inherit import Design
from pixelize.inheritance.record import (
    Record,
    converted_modules,
    fingerprint,
    keep_report,
    new_record,
    record_of,
    remember,
)
from pixelize.layers.gate import gate_of, set_gate
from pixelize.layers.pixel_dcl import iPixelDCL
from pixelize.rewrites import Geometry, Site, become, geometry_of, outline, state_of
from pixelize.rewrites.state.splice import State

FORMAT = 1
WEIGHTS = "model.safetensors"
PLAN = "pixelize.json"


def save(model: nn.Module, folder: str | os.PathLike[str], *, source: str | None = None) -> Path:
    """Writes a converted model: ``model.safetensors`` (all its weights) and ``pixelize.json`` (what was
    converted, and how).

    ``source`` is noted in the latter: the name by which the command line builds the model anew, such as
    ``smp:Linknet``.

    The folder is made if need be; files in it are replaced atomically, and other files are left alone.
    Returns the folder.

    Raises PixelizeError if the model was not converted, or has state that is no tensor; OSError if the disk
    refuses.
    """
    model = getattr(model, "_orig_mod", model)
    plan = plan_of(model)
    if not plan["sites"]:
        raise PixelizeError(
            f"this {type(model).__name__} has no converted layers to save; convert it first, or save its "
            "state_dict"
        )
    tensors, aliases = _unique_tensors(model)
    plan["aliases"] = aliases
    if source is not None:
        plan["source"] = source
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        weights = Path(staging) / WEIGHTS
        save_file(tensors, weights, metadata={"format": "pt"})
        plan["sha256"] = _sha256(weights)
        text = json.dumps(plan, indent=1) + "\n"
        (Path(staging) / PLAN).write_text(text)
        folder.mkdir(exist_ok=True)
        # a crash between the two leaves weights that do not match the plan's checksum, which `load` refuses
        os.replace(weights, folder / WEIGHTS)
        os.replace(Path(staging) / PLAN, folder / PLAN)
    return folder


def load(folder: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Makes ``into``, a freshly built model of the saved one's architecture, the converted and trained model,
    in place.

    Nothing is unpickled. Returns ``into``.

    Raises LoadError if the folder is missing a file, is damaged, or belongs to another model; ``into`` is
    then as it was.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise LoadError(f"{folder}: {WEIGHTS} is missing; pixelize.save writes it beside {PLAN}")
    if _sha256(weights) != plan["sha256"]:
        raise LoadError(
            f"{folder}: {WEIGHTS} is not the file that {PLAN} was written with (damaged, or an interrupted "
            "save); save again"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{weights}: not a readable safetensors file ({error})") from error
    for alias, name in plan["aliases"].items():
        tensors[alias] = tensors[name]
    model = getattr(into, "_orig_mod", into)
    undo = apply_plan(model, plan, str(folder))
    try:
        _fill(model, tensors, str(folder))
    except BaseException:
        undo()
        raise
    for module in converted_modules(model).values():
        record: Record = record_of(module)  # type: ignore[assignment]
        remember(module, replace(record, fingerprint=fingerprint(module)))
    _attach_report(model, str(folder))
    return into


def plan_of(model: nn.Module) -> dict[str, Any]:
    """What was converted in ``model``, as plain data: enough to convert a fresh copy of it the same way,
    without its weights.
    """
    sites = []
    for name, module in converted_modules(model).items():
        record: Record = record_of(module)  # type: ignore[assignment]
        gates = {
            n: gate_of(m) for n, m in module.named_modules() if isinstance(m, iPixelDCL) and gate_of(m) != 1.0
        }
        site = record.site
        sites.append(
            {
                "name": name,
                "names": list(site.names),
                "kind": site.kind,
                "type": site.type,
                "geometry": asdict(site.geometry),
                "options": dict(site.options),
                "layer": record.layer,
                "design": asdict(record.design),
                "gates": gates,
            }
        )
    return {"format": FORMAT, "model": type(model).__name__, "sites": sites}


def read_plan(folder: Path) -> dict[str, Any]:
    """The checked contents of ``pixelize.json``. Raises LoadError."""
    path = folder / PLAN
    if not path.is_file():
        raise LoadError(f"{folder}: no {PLAN} there; is it a folder that pixelize.save wrote?")
    try:
        plan = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise LoadError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(plan, dict) or not {"format", "sites", "sha256", "aliases"} <= plan.keys():
        raise LoadError(f"{path}: not a plan that pixelize.save wrote")
    if plan["format"] != FORMAT:
        raise LoadError(f"{path}: format {plan['format']!r}; this version of pixelize reads format {FORMAT}")
    return plan


def apply_plan(model: nn.Module, plan: dict[str, Any], where: str) -> Callable[[], None]:
    """Gives ``model`` the layers of a plan, with its own weights still in them.

    Returns a function that undoes it. Raises LoadError; ``model`` is then as it was.
    """
    entries = [_parsed(entry, where) for entry in plan["sites"]]
    present = converted_modules(model)
    try:
        unoutline = outline(model, [e.site for e in entries if e.site.name not in present])
    except ValueError as error:
        raise LoadError(f"{where}: it does not fit this {type(model).__name__} ({error})") from error
    undo: list[tuple[nn.Module, State]] = []

    def undo_all() -> None:
        for module, state in undo:
            become(module, state)
        unoutline()

    try:
        made = []
        for entry in entries:
            try:
                module = model.get_submodule(entry.site.name)
            except AttributeError:
                raise LoadError(
                    f"{where}: it was saved from a {plan.get('model')} with a module {entry.site.name!r}, "
                    "which this "
                    f"{type(model).__name__} does not have"
                ) from None
            made.append((module, state_of(_converted(module, entry, where))))
        undo = [(module, state_of(module)) for module, _ in made]
        for module, state in made:
            become(module, state)
    except BaseException:
        undo_all()
        raise
    return undo_all


@dataclass(frozen=True)
class _Entry:
    site: Site
    layer: str
    design: Design
    gates: dict[str, float]


def _parsed(entry: dict[str, Any], where: str) -> _Entry:
    try:
        geometry = Geometry(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in entry["geometry"].items()}  # type: ignore[arg-type]
        )
        site = Site(
            entry["name"], tuple(entry["names"]), entry["kind"], entry["type"], geometry, entry["options"]
        )
        d = entry["design"]
        design = Design(tuple(d["kernel_size"]), d["groups"], d["schedule"], d["input_stages"])
        return _Entry(site, entry["layer"], design, dict(entry["gates"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(f"{where}: {PLAN} is damaged ({type(error).__name__}: {error})") from error


def _converted(module: nn.Module, entry: _Entry, where: str) -> nn.Module:
    """What ``module`` becomes: the entry's layer with the module's own weights in it, where it has any for
    it.
    """
    site, geometry = entry.site, entry.site.geometry
    record = record_of(module)
    if record is not None:
        if (record.layer, record.design, record.site.geometry) != (entry.layer, entry.design, geometry):
            raise LoadError(
                f"{where}: {site.name} is converted already, into another layer; load into a freshly built "
                "model"
            )
        new = module
    else:
        if isinstance(module, nn.ConvTranspose2d) and geometry_of(module) != geometry:
            raise LoadError(
                f"{where}: {site.name} is {_told(geometry_of(module))} here, and {_told(geometry)} in the "
                "saved model"
            )
        try:
            new, _, _ = build_layer(site, module, entry.layer, entry.design, "zero")
        except Exception as error:
            raise LoadError(
                f"{where}: {site.name} is a {type(module).__name__} that does not fit the plan ({error})"
            ) from error
        inherits = entry.layer == "ipixeldcl" and site.kind == "conv_transpose"
        remember(
            new, new_record(site, entry.layer, entry.design, state_of(module) if inherits else None, new)
        )
    for name, gate in entry.gates.items():
        set_gate(new.get_submodule(name), gate)  # type: ignore[arg-type]
    return new


def _told(g: Geometry) -> str:
    return f"{g.in_channels} to {g.out_channels} channels, kernel {g.kernel_size}, stride {g.stride}"


def _attach_report(model: nn.Module, where: str) -> None:
    rows = []
    for name, module in converted_modules(model).items():
        record: Record = record_of(module)  # type: ignore[assignment]
        site, layer = record.site, record.layer
        g = site.geometry
        rows.append(
            SiteReport(
                name, site.kind, site.type, "converted", site.names, layer_name(layer, len(g.stride)),
                in_channels=g.in_channels,
                out_channels=g.out_channels, kernel_size=g.kernel_size, stride=g.stride,
                parameters_after=count_parameters(module),
            )
        )  # fmt: skip
    report = Report(rows, "a saved plan", [f"loaded from {where}"], parameters_after=count_parameters(model))
    keep_report(model, report)


def _fill(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    shaped = [k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape]
    if missing or surplus or shaped:
        told = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
        told += [f"{len(surplus)} not in this model, such as {surplus[0]}"] if surplus else []
        told += [
            f"{k} is {tuple(tensors[k].shape)} there and {tuple(expected[k].shape)} here"
            for k in sorted(shaped)[:1]
        ]
        raise LoadError(f"{where}: its weights do not fit this {type(model).__name__}: {'; '.join(told)}")
    meta = any(t.device.type == "meta" for t in expected.values())
    model.load_state_dict(tensors, assign=meta)


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
