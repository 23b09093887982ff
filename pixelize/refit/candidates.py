"""Which weights can make a pattern, or take it out: those at the model's up-samplings and after the last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pixelize.refit.calls import SeenCall
from pixelize.refit.limits import RepairLimits


@dataclass(frozen=True)
class Candidate:
    """A weight that may be refitted: ``weights`` by name (a bias too, where it differs by phase), the calls
    that use it, and why it is looked at."""

    name: str
    weights: tuple[str, ...]
    numbers: tuple[int, ...]
    role: str
    multiply_adds: float
    grid: int
    """Pixels of the picture for one place of what it makes a pattern on."""


@dataclass
class Found:
    """The candidates, nearest to the picture first; the period of the pattern that they can make together, in
    pixels; what was passed over, with the reason."""

    candidates: list[Candidate] = field(default_factory=list)
    period: int = 1
    passed: dict[str, str] = field(default_factory=dict)


def candidates_of(
    calls: list[SeenCall], named: Mapping[str, Tensor], size: tuple[int, ...], limits: RepairLimits
) -> Found:
    """An up-sampling is where the next operator reads a finer grid than the last one made, or a transposed
    convolution makes a finer one than it reads.

    What makes the coarse grid there (of a convolution and a PixelShuffle the convolution), what reads the
    fine one (of a resize and a convolution the convolution), and every convolution after the last up-sampling
    can change the pattern. A grid of n pixels makes a pattern of period n. Longer ones than
    ``limits.longest(size)`` are not looked for.
    """
    found = Found()
    roles: dict[int, str] = {}
    periods: list[int] = []
    last_rise = -1
    steps = list(zip(calls, [*calls, None][1:], strict=True))
    for n, (call, after) in enumerate(steps):
        read, made = _grid(call.read), _grid(call.made)
        following = (1,) * len(size) if after is None else _grid(after.read)
        if call.kind == "transposed" and made < read:
            roles[n], last_rise = "transposed convolution", n
            periods.append(max(read))
        if min(made) >= 1 and following < made and not math.isinf(max(call.made)):
            roles.setdefault(n, "before an up-sampling")
            if after is not None and after.kind != "linear":
                roles.setdefault(n + 1, "after an up-sampling")
            last_rise = max(last_rise, n)
            periods.append(max(made))
    for n in range(last_rise + 1, len(calls) if last_rise >= 0 else 0):
        if calls[n].kind != "linear":
            roles.setdefault(n, "after the last up-sampling")
    longest = limits.longest(size)
    allowed = [p for p in periods if 1 < p <= longest]
    while allowed and math.lcm(*allowed) > longest:
        allowed.remove(max(allowed))
    found.period = math.lcm(*allowed) if allowed else 1
    by_weight: dict[str, list[int]] = {}
    for n in sorted(roles, reverse=True):
        call, name = calls[n], _owner(calls[n].weight)
        grid = max(_grid(call.read) if call.kind == "transposed" else _grid(call.made))
        if call.doubts:
            found.passed[f"operator {call.number}"] = call.doubts
        elif call.kind == "transposed" and found.period % grid:
            found.passed[name] = f"a pattern of {grid} pixels is too long to be told from the picture"
        else:
            by_weight.setdefault(call.weight, []).append(n)
    for weight, at in by_weight.items():
        call = calls[at[0]]
        own = [weight]
        if call.bias in named and roles[at[0]] == "before an up-sampling":
            own.append(call.bias)
        numbers = tuple(c.number for c in calls if c.weight == weight)
        cost = sum(calls[n].multiply_adds for n in numbers)
        grid = min(max(_grid(calls[n].read if calls[n].kind == "transposed" else calls[n].made)) for n in at)
        found.candidates.append(Candidate(_owner(weight), tuple(own), numbers, roles[at[0]], cost, grid))
    return found


def _grid(scale: tuple[float, ...]) -> tuple[int, ...]:
    """Whole pixels of the picture for one place; 0 stands for finer than the picture."""
    return tuple(0 if math.isinf(v) or v > 512 else round(v) for v in scale)


def _owner(parameter: str) -> str:
    """The module whose weight it is: ``up`` for ``up.weight`` and ``up.parametrizations.weight.original``."""
    name = parameter.split(".parametrizations.")[0] if ".parametrizations." in parameter else parameter
    if name.startswith("parametrizations."):
        return "(the model itself)"
    head, _, tail = name.rpartition(".")
    if ".parametrizations." in parameter:
        return name
    return (head or "(the model itself)") if tail.startswith("weight") else name
