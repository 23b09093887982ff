"""Whether a saved plan, its weights file and the model at hand belong together, before anything is read."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from pixelize.algebra.schedule import make_schedule
from pixelize.conversion.saved_folder import Shapes
from pixelize.conversion.saved_plan import SavedPlan, SavedSite
from pixelize.errors import LoadError


def check_size(saved: SavedSite, shapes: Shapes) -> None:
    """Raises ValueError unless the weights file holds the kernels that a design asks for: nothing is made
    larger than what it will be filled with.
    """
    g, design = saved.site.geometry, saved.design
    prefix = f"{saved.site.name}." if saved.site.name else ""
    held = {name: shape for name, (shape, _) in shapes.items() if name.startswith(prefix)}
    room = sum(map(prod, held.values()))
    if g.in_channels * g.out_channels // g.groups > room:
        raise ValueError(f"its weights are too few for {g.in_channels} to {g.out_channels} channels")
    if saved.layer == "dcl":
        return
    period = tuple(saved.site.options["period"]) if saved.site.kind == "conv" else g.stride
    phases, taps = prod(period), prod(design.kernel_size)
    work = phases**2 if design.schedule in ("sequential", "near") else phases
    if max(work, taps) > max(room, 2**16):
        raise ValueError(f"its weights are too few for {phases} phases and dependency kernels of {taps} taps")
    groups = g.out_channels if design.groups == -1 else design.groups
    stages = make_schedule(design.schedule, period, design.kernel_size).stages
    for number, stage in enumerate(stages):
        wanted = stage.kernel_shape(g.out_channels, groups, design.kernel_size)
        ends = f"dependency_kernels.{number}"
        if not any(shape == wanted for name, shape in held.items() if name.endswith(ends)):
            raise ValueError(f"there is no {ends} of shape {wanted} among its weights")
    if design.input_stages > len(stages):
        raise ValueError(f"input_stages is {design.input_stages} of {len(stages)} stages")


def check_fit(model: nn.Module, shapes: Shapes, where: str) -> None:
    """Raises LoadError unless a weights file holds exactly the tensors of ``model``."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - shapes.keys())
    surplus = sorted(shapes.keys() - expected.keys())
    told = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
    told += [f"{len(surplus)} not in this model, such as {surplus[0]}"] if surplus else []
    for name in sorted(expected.keys() & shapes.keys()):
        shape, kind = shapes[name]
        here = expected[name]
        if not isinstance(here, Tensor) or shape != here.shape:
            told.append(f"{name} is {shape} there and {tuple(getattr(here, 'shape', ()))} here")
        elif kind.startswith(("F", "BF")) != here.is_floating_point():
            told.append(f"{name} is {kind} there and {here.dtype} here")
    if told:
        raise LoadError(f"{where}: its weights do not fit this {type(model).__name__}: {'; '.join(told[:3])}")


def with_aliases(shapes: Shapes, plan: SavedPlan, where: str) -> Shapes:
    """The shapes in a weights file, and those of a plan's further names for its tensors.

    Raises LoadError for names that do not fit the file.
    """
    for alias, name in plan.aliases.items():
        if alias in shapes or name not in shapes:
            raise LoadError(f"{where}: the alias {alias!r} of {name!r} does not fit the weights file")
    return {**shapes, **{alias: shapes[name] for alias, name in plan.aliases.items()}}
