"""What is known of a value: which of its channels a resize has made, by what factor.

The rules by which a function of torch carries that on from its arguments to its result. They hold for every
input; what no rule names ends what was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import mul
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pixelize.rewrites.graph.flow import Margin, margin_of, within_blocks
from pixelize.rewrites.graph.operator_names import LINEAR, is_pointwise
from pixelize.rewrites.graph.resize_factor import Factor, axis_factor, spread
from pixelize.rewrites.state.capturing import capturing

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch >= 2.7

Run = tuple[int, int, Factor]
ALL = -1
"""In the place of a run's end: to the last channel, however many there are."""
LARGEST = 40
"""Up to this factor s, floor(o * (1 / s)) in float32, as torch computes it, is o // s."""


class Claim(NamedTuple):
    """What is known of a value (N, C, ..).

    The channels ``start`` to ``stop`` (exclusive) of each run ``(start, stop, factor)`` are a picture
    enlarged by ``factor``; ``mode`` says how, ``"nearest"`` or ``"linear"``. ``margin``: what was padded
    around it since, the padding's mode and its width on both sides of each axis.
    """

    mode: str
    margin: Margin | None
    runs: tuple[Run, ...]


def covers(
    claim: Claim | None,
    mode: str,
    margin: Margin | None,
    factor: Sequence[int],
    ranges: Iterable[Sequence[int]],
) -> bool:
    """Whether a claim says that the channels of ``ranges`` are a picture enlarged by ``factor``."""
    if claim is None or claim.mode != mode or claim.margin != margin:
        return False
    for start, stop in ranges:
        at = start
        while at < stop:
            end = at
            for a, b, mine in claim.runs:
                if a <= at and (b == ALL or at < b) and _is_multiple(mine, factor, mode):
                    end = stop if b == ALL else b
            if end == at:
                return False
            at = end
    return True


def _is_multiple(mine: Factor, factor: Sequence[int], mode: str) -> bool:
    mine = spread(mine, len(factor))
    if mode == "linear" or len(mine) != len(factor):
        return mine == tuple(factor)
    return all(a % b == 0 for a, b in zip(mine, factor, strict=True))


def functions(names: Iterable[str]) -> frozenset[Any]:
    """The functions and methods of torch of these names, operators and those that write in place among
    them."""
    functions = set()
    for name in names:
        for variant in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
            for owner in (torch, F, Tensor):
                function = getattr(owner, variant, None)
                if callable(function) and not isinstance(function, type):
                    functions.add(function)
    return frozenset(functions)


POINTWISE = functions(
    [n for n in {*dir(torch), *dir(Tensor)} if not n.startswith("_") and is_pointwise(n)]
    + ["truediv", "relu6", "hardtanh", "threshold", "softsign", "logsigmoid", "tanhshrink"]
)
CHANNELWISE = functions(
    [
        "batch_norm",
        "instance_norm",
        "group_norm",
        "prelu",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "feature_dropout",
    ]
)
KINKED = functions(["prelu"])
ALIASES = functions(
    ["contiguous", "clone", "to", "type_as", "detach", "float", "half", "double", "bfloat16", "cuda", "cpu"]
)
TYPE_AS = functions(["type_as", "to"])
ITEMS = functions(["getitem"])
DROPOUTS = functions(["dropout", "alpha_dropout"])
RESIZES = functions(["interpolate", "upsample", "repeat_interleave"])
CONCATENATIONS = functions(["cat", "concat", "concatenate"])
PADS = functions(["pad"])
POINTERS = functions(["data_ptr"])
IN_PLACE = functions(n for n in {*dir(torch), *dir(Tensor)} if n.endswith("_") and not n.endswith("__"))
# those of any result's own storage that also take what is no longer a resized picture
FRESH = functions(
    [*(f"{name}{n}d" for n in (1, 2, 3) for name in ("conv", "conv_transpose", "avg_pool", "max_pool",
                                                     "adaptive_avg_pool", "adaptive_max_pool")),
     "linear", "matmul", "mean", "sum", "amax", "amin", "layer_norm", "softmax", "interpolate", "dim",
     "size", "numel", "stride", "is_contiguous", "is_floating_point", "repeat_interleave"]
)  # fmt: skip


_REPEATS = functions(["repeat_interleave"])
_FACTORS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


def resized(function: Any, args: Any, kwargs: Any, result: Any, before: Claim | None) -> Claim | None:
    """What a resize says of its result; ``before`` is what was known of its argument."""
    if function in _REPEATS:
        return _repeated(result, before, *args, **kwargs)
    return _interpolated(result, before, *args, **kwargs)


def _interpolated(
    result: Any,
    before: Claim | None,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Claim | None:
    if mode not in ("nearest", "nearest-exact", *LINEAR) or align_corners or antialias:
        return None
    mode = "linear" if mode in LINEAR else mode
    if scale_factor is not None:
        given = tuple(scale_factor) if isinstance(scale_factor, (tuple, list)) else (scale_factor,)
        if any(not isinstance(v, (int, float)) or v != int(v) for v in given):
            return None
        factor = tuple(map(int, given))
        if isinstance(result, Tensor):
            factor = spread(factor, result.dim() - 2)
    elif isinstance(input, Tensor):
        sizes = zip(input.shape[2:], result.shape[2:], strict=True)
        factor = tuple(_factor(a, b, mode) for a, b in sizes)
    else:
        return None
    return _enlarged(result, before, factor, "linear" if mode == "linear" else "nearest")


def _repeated(
    result: Any, before: Claim | None, input: Any, repeats: Any, dim: Any = None, **_: Any
) -> Claim | None:
    if not isinstance(repeats, int) or not isinstance(dim, int):
        return None
    if dim < 0 and not isinstance(result, Tensor):
        return None
    n = result.dim() - 2 if isinstance(result, Tensor) else 2
    axis = dim + n if dim < 0 else dim - 2
    if not 0 <= axis < n:
        return None
    return _enlarged(result, before, tuple(repeats if i == axis else 1 for i in range(n)), "nearest")


def _enlarged(result: Any, before: Claim | None, factor: Factor, mode: str) -> Claim | None:
    if not all(1 <= s <= LARGEST for s in factor) or not has_channels(result):
        return None
    if all(s == 1 for s in factor):
        return before
    runs: list[Run] = []
    at = 0
    if before is not None and before.margin is None and before.mode == mode == "nearest":
        for a, b, mine in before.runs:
            if a > at:
                runs.append((at, a, factor))
            n = max(len(mine), len(factor))
            runs.append((a, b, tuple(map(mul, spread(mine, n), spread(factor, n)))))
            at = b
    stop = result.shape[1] if isinstance(result, Tensor) else ALL
    if at != ALL and (stop == ALL or at < stop):
        runs.append((at, stop, factor))
    return Claim(mode, None, tuple(runs))


def _factor(before: Any, after: Any, mode: str) -> int:
    """The factor between two lengths of an axis; 0 where there is none, or none for every call that a graph
    being captured will be used for."""
    if torch.jit.is_tracing():
        return 0
    if not capturing():
        if before and after % before == 0 and (mode == "linear" or after <= LARGEST * before):
            return after // before
        if mode == "linear":
            return 0
        return axis_factor(before, after, None, mode == "nearest-exact") or 0
    for factor in _FACTORS:
        if _holds(after == factor * before):
            return factor
    return 0


def _holds(condition: Any) -> bool:
    if torch.compiler.is_dynamo_compiling() and not _is_exporting():
        return True if condition else False  # noqa: SIM210  (a guard: at other sizes it is compiled anew)
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings in sympy

    return statically_known_true(condition)


def has_channels(value: Any) -> bool:
    """Whether a value is (N, C, ..); of a symbolic one that is taken from what is done to it."""
    return value.dim() in (3, 4, 5) if isinstance(value, Tensor) else isinstance(value, fx.Proxy)


def concatenated(result: Any, known: Sequence[tuple[Any, Claim | None]], dim: int) -> Claim | None:
    """What is known of tensors, each with the claim on it, put side by side along ``dim``."""
    claims = [claim for _, claim in known if claim is not None]
    if not isinstance(result, Tensor) or not has_channels(result) or dim not in (1, 1 - result.dim()):
        return None
    if any(claim.margin != claims[0].margin for claim in claims):
        return None
    mode = "nearest" if any(claim.mode == "nearest" for claim in claims) else "linear"
    runs: list[Run] = []
    at = 0
    for tensor, claim in known:
        if claim is not None and claim.mode == mode:
            runs += [(at + a, at + b, factor) for a, b, factor in claim.runs]
        at += tensor.shape[1]
    return Claim(mode, claims[0].margin, tuple(runs))


def padded(result: Any, claim: Claim, pads: Any, mode: str = "constant", value: Any = None) -> Claim | None:
    """Symmetric padding: with zeros; with the outermost pixels; or reflected by one pixel, which within a
    block is the same."""
    if claim.margin is not None or not isinstance(pads, (tuple, list)):
        return None
    width = margin_of(pads)
    if width is None or (isinstance(result, Tensor) and result.dim() != len(width) + 2):
        return None
    if mode == "constant":
        return Claim(claim.mode, ("zeros", width), claim.runs) if not value else None
    repeated = claim.mode != "nearest" or all(within_blocks(width, factor) for _, _, factor in claim.runs)
    if mode == "reflect" and not repeated:
        return None
    return Claim(claim.mode, (mode, width), claim.runs) if mode in ("reflect", "replicate") else None


def pointwise(result: Any, operands: Sequence[tuple[Any, Claim | None]]) -> Claim | None:
    """What is known of a function of corresponding pixels: what was known of all operands alike, those that
    are the same all over the picture aside."""
    common: Claim | None = None
    for operand, claim in operands:
        if claim is None:
            axes = result.dim() - 2 if isinstance(result, Tensor) else 2
            if not isinstance(operand, Tensor) or any(d != 1 for d in operand.shape[-axes:]):
                return None
        elif (common is not None and claim != common) or not movable(claim) or claim.mode != "nearest":
            return None
        else:
            common = claim
            if isinstance(operand, Tensor) and operand.shape[1:] != result.shape[1:]:
                return None
    return common


def movable(claim: Claim) -> bool:
    """Whether a function of the values keeps the margin what it is: a zero may become another number."""
    return claim.margin is None or claim.margin[0] != "zeros"


def sliced(result: Any, claim: Claim, index: Any) -> Claim | None:
    """``value[:, start:stop]``: some of the channels."""
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None):
        return None
    part = index[1]
    if not isinstance(part, slice) or part.step not in (None, 1) or not isinstance(result, Tensor):
        return None
    start = part.start or 0
    if not isinstance(start, int) or start < 0:
        return None
    stop = start + result.shape[1]
    runs = [(max(a, start) - start, min(b, stop) - start, factor) for a, b, factor in claim.runs]
    return Claim(claim.mode, claim.margin, tuple(r for r in runs if r[0] < r[1]))
