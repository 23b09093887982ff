"""What ``pixelize.json`` holds, checked before anything is done with it: it may be damaged, or a stranger's.

Every name is known, every number bounded, and a checksum tells whether it is as it was written. What a plan
says of a model's modules is compared with them by :mod:`pixelize.conversion.saved`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pixelize.algebra.schedule import SCHEDULES
from pixelize.errors import LoadError
from pixelize.inheritance.inherit import LAYERS, Design
from pixelize.inheritance.record import Record, converted_modules, kept_repair, record_of
from pixelize.layers.dependency_kernels import InputGated
from pixelize.layers.gate import gate_of
from pixelize.rewrites import SITE_KINDS, Geometry, Site

PLAN = "pixelize.json"
FORMAT = 2
"""Format 1 had no checksum of its own; it is still read."""
LARGEST = 2**24
"""Bytes of a plan at most: some 20,000 sites."""
_CHECKSUM_LEAVES_OUT = ("checksum", "source")  # the source is a note, which may be edited; `load` ignores it


@dataclass(frozen=True)
class SavedSite:
    """One converted module: its site, layer and design, and the gates in it that are not open."""

    site: Site
    layer: str
    design: Design
    gates: dict[str, float]


@dataclass(frozen=True)
class SavedPlan:
    """The contents of ``pixelize.json``.

    ``model``: the class that was saved. ``aliases``: names of tensors that are stored under another name.
    ``sha256``: of the weights file. ``source``: what the command line builds the model from.
    ``repaired``: the modules that :func:`pixelize.repair` changed, whose numbers are in the weights.
    """

    model: str
    sites: tuple[SavedSite, ...]
    aliases: dict[str, str]
    sha256: str
    source: str | None = None
    repaired: tuple[str, ...] = ()


def plan_of(model: nn.Module) -> dict[str, Any]:
    """What was converted in ``model``, as plain data: enough to convert a fresh copy of it the same way,
    without its weights.
    """
    sites = []
    for name, module in converted_modules(model).items():
        record: Record = record_of(module)  # type: ignore[assignment]
        gates = {
            n: gate_of(m)
            for n, m in module.named_modules()
            if isinstance(m, InputGated) and gate_of(m) != 1.0
        }
        site = record.site.seen_as(name)
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
    plan = {"format": FORMAT, "model": type(model).__name__, "sites": sites}
    repair = kept_repair(model)
    return plan if repair is None else {**plan, "repaired": [site.name for site in repair.repaired]}


def to_text(plan: dict[str, Any]) -> str:
    """A plan as ``pixelize.json`` has it, its checksum added."""
    return json.dumps({**plan, "checksum": _checksum(plan)}, indent=1) + "\n"


def parse(text: bytes, where: str) -> SavedPlan:
    """The plan in ``text``. Raises LoadError, beginning with ``where``, for anything that
    :func:`pixelize.save` does not write.
    """
    where = f"{where}/{PLAN}"
    if len(text) > LARGEST:
        raise LoadError(f"{where}: {len(text)} bytes; no plan is larger than {LARGEST}")
    try:
        plan = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{where}: not readable as JSON ({type(error).__name__}: {error})") from None
    if not isinstance(plan, dict) or "format" not in plan:
        raise LoadError(f"{where}: not a plan that pixelize.save wrote")
    number = plan["format"]
    if number not in (1, FORMAT) or isinstance(number, bool):
        raise LoadError(f"{where}: format {str(number)[:40]}; this version of pixelize reads formats 1 and 2")
    if reason := _problem(plan, _PLAN if number == FORMAT else _FIRST_PLAN, "the plan"):
        raise LoadError(f"{where}: damaged, or not written by pixelize.save: {reason}")
    if number == FORMAT and plan["checksum"] != _checksum(plan):
        raise LoadError(f"{where}: it was changed after it was saved (its checksum is another); save again")
    names = [entry["name"] for entry in plan["sites"]]
    if len(set(names)) != len(names):
        raise LoadError(f"{where}: a module is listed twice")
    sites = tuple(map(_site, plan["sites"]))
    return SavedPlan(
        plan["model"], sites, plan["aliases"], plan["sha256"], plan.get("source"),
        tuple(plan.get("repaired", ())),
    )  # fmt: skip


def _site(entry: dict[str, Any]) -> SavedSite:
    pairs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["geometry"].items()}
    site = Site(
        entry["name"], tuple(entry["names"]), entry["kind"], entry["type"], Geometry(**pairs),
        entry["options"],
    )  # fmt: skip
    d = entry["design"]
    design = Design(tuple(d["kernel_size"]), d["groups"], d["schedule"], d["input_stages"])
    return SavedSite(site, entry["layer"], design, {k: float(v) for k, v in entry["gates"].items()})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return entries


def _checksum(plan: dict[str, Any]) -> str:
    counted = {k: v for k, v in plan.items() if k not in _CHECKSUM_LEAVES_OUT}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


Shape = Callable[[Any], bool] | list[Any] | dict[Any, Any]


def _problem(value: Any, shape: Shape, name: str) -> str | None:
    """What is wrong with ``value``; None if it has the given shape.

    A shape is a predicate, ``[shape]`` (a list), ``{str: shape}`` (any names), or a dictionary of shapes by
    name, of which names ending in ``?`` may be missing.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is {_told(value)}, not a list"
        return next((p for i, v in enumerate(value) if (p := _problem(v, shape[0], f"{name}[{i}]"))), None)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{name} is {_told(value)}, not an object"
        if str in shape:
            known = {key: shape[str] for key in value if _text(key)}
        else:
            known = {key.rstrip("?"): part for key, part in shape.items()}
            if missing := [key for key in shape if not key.endswith("?") and key not in value]:
                return f"{name} has no {missing[0]!r}"
        if unknown := [key for key in value if key not in known]:
            return f"{name} has {_told(unknown[0])}, which is not known"
        return next((p for k, v in value.items() if (p := _problem(v, known[k], f"{name}.{k}"))), None)
    return None if shape(value) else f"{name} is {_told(value)}"


def _told(value: Any) -> str:
    text = repr(value)[:60] if not isinstance(value, list | dict) else f"a {type(value).__name__}"
    return text.encode("ascii", "backslashreplace").decode()


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < 2**31


def _each_axis(least: int) -> Callable[[Any], bool]:
    """A number for each of one to three axes."""
    whole = _whole(least)
    return lambda value: isinstance(value, list) and 1 <= len(value) <= 3 and all(map(whole, value))


def _one_of(*known: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in known


def _gate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # and so no NaN


def _hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _option(value: Any) -> bool:
    """Words, numbers, lists of words, and of numbers two deep; what each means is for the kind of site."""
    if isinstance(value, list):
        if all(map(_text, value)):
            return True
        return all(_whole(0)(v) or (isinstance(v, list) and all(map(_whole(0), v))) for v in value)
    return value is None or _text(value) or isinstance(value, bool) or _whole(0)(value)


_GEOMETRY = {
    "in_channels": _whole(1),
    "out_channels": _whole(1),
    "kernel_size": _each_axis(1),
    "stride": _each_axis(1),
    "padding": _each_axis(0),
    "output_padding": _each_axis(0),
    "groups": _whole(1),
    "dilation": _each_axis(1),
    "bias": lambda value: isinstance(value, bool),
}
_DESIGN = {
    "kernel_size": _each_axis(1),
    "groups": lambda value: value == -1 or _whole(1)(value),
    "schedule": _one_of(*SCHEDULES),
    "input_stages": _whole(0),
}
_SITE = {
    "name": _text,
    "names": [_text],
    "kind": _one_of(*SITE_KINDS),
    "type": _text,
    "geometry": _GEOMETRY,
    "options": {str: _option},
    "layer": _one_of(*LAYERS, "dcl"),
    "design": _DESIGN,
    "gates": {str: _gate},
}
_FIRST_PLAN: dict[Any, Any] = {
    "format": _whole(1),
    "model": _text,
    "sites": [_SITE],
    "aliases": {str: _text},
    "sha256": _hash,
    "source?": _text,
}
_PLAN = {**_FIRST_PLAN, "checksum": _hash, "repaired?": [_text]}
