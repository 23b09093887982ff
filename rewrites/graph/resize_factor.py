"""By what whole number a resize enlarges each axis, if by any."""

from __future__ import annotations

import struct
from functools import lru_cache

from torch import fx

from pixelize.rewrites.graph.operator_names import LINEAR
from pixelize.rewrites.graph.operators import Op, shape_of

Factor = tuple[int, ...]
"""A number for each axis, or a single one that holds for all of them."""


def spread(factor: Factor, n: int) -> Factor:
    """A factor as one number for each of ``n`` axes."""
    return factor * n if len(factor) == 1 else factor


def resize_factor(node: fx.Node, op: Op) -> tuple[Factor | None, str]:
    """The integer factor of a nearest or linear resize, or None with the reason why it has none."""
    mode = op.args["mode"]
    if not mode.startswith("nearest") and mode not in LINEAR:
        return None, f"{mode} resize: only nearest and (bi-, tri-) linear ones are converted"
    if mode in LINEAR and op.args["align_corners"]:
        return None, f"{mode} resize with align_corners: its weights change from pixel to pixel"
    before, after = shape_of(op.args["input"]), shape_of(node)
    if before is None or after is None:
        scale = op.args["scale"]
        if scale is None or any(v is None or v != int(v) for v in scale):
            return None, "resize to a size that is known only at run time"
        return tuple(map(int, scale)), ""
    n = len(after) - 2
    if n not in (1, 2, 3):
        return None, f"resize of a {len(after)}-dimensional tensor"
    scale = spread(op.args["scale"] or (None,), n)  # type: ignore[arg-type]
    if mode in LINEAR:
        factor = [linear_factor(before[2 + i], after[2 + i], scale[i]) for i in range(n)]
    else:
        factor = [
            axis_factor(before[2 + i], after[2 + i], scale[i], exact=mode == "nearest-exact")
            for i in range(n)
        ]
    if None in factor:
        return None, f"{mode} resize from {before[2:]} to {after[2:]} is not by an integer factor"
    return tuple(factor), ""  # type: ignore[arg-type]


def linear_factor(before: int, after: int, scale: float | None) -> int | None:
    """The s for which output index o of a linear resize lies at (o + 1/2) / s - 1/2 along one axis, or
    None."""
    if scale is None and before == 1 and after > 1:
        return None  # the factor would change with the input's size
    s = round(scale) if scale is not None else after // before
    return s if s >= 1 and before * s == after and scale in (None, s) else None


@lru_cache(4096)
def axis_factor(before: int, after: int, scale: float | None, exact: bool) -> int | None:
    """The s for which output index o of a nearest resize reads input o // s along one axis, or None.

    ``nearest`` reads floor(o / scale), ``nearest-exact`` floor((o + 1/2) / scale), scale being the given one
    or after / before, all in float32. From a single pixel to many there is none: the factor would change
    with the input's size.
    """
    if before < 1 or (scale is None and before == 1 and after > 1):
        return None
    step = _float32(1 / scale if scale is not None and scale > 0 else before / after)
    s = round(scale) if scale is not None else -(-after // before)
    if s < 1 or -(-after // s) != before:
        return None
    shift = 0.5 if exact else 0.0
    for o in range(after):
        if min(int(_float32((o + shift) * step)), before - 1) != min(o // s, before - 1):
            return None
    return s


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
