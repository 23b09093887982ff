"""Checking that a conversion that should change nothing changed nothing, on the inputs at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pixelize.adapters import call
from pixelize.errors import ArgumentError, ConversionError
from pixelize.inheritance.cost import measure_multiply_adds
from pixelize.rewrites import Site
from pixelize.rewrites.seeing.apart import apart, copied_inputs, has_hooks_off
from pixelize.rewrites.seeing.bounded import Bounded
from pixelize.rewrites.seeing.other_size import resized_inputs
from pixelize.rewrites.seeing.shared_weights import Result
from pixelize.rewrites.state.modules import devices_of, modules_of
from pixelize.rewrites.state.random_state import random_state_kept
from pixelize.running.outputs import parameter_not_finite, relative_error, share_not_finite, tensors

ALLOWED = 12.0
"""A converted model may differ by so many times what its arithmetic's own rounding does to the original."""
OTHER_SIZES = (33 / 32, 1.5, 0.5)
"""Input sizes tried beside the one at hand, the first that the original takes: one is no multiple of much."""


@dataclass(frozen=True, eq=False)
class Observed:
    """One run of a model: its inputs, its outputs, the multiply-adds inside each site's module, how far
    rounding alone may move the outputs (relative; None where that was not asked for), and the share of the
    outputs' values that is NaN or infinite, of which a comparison says nothing.
    """

    inputs: Any
    outputs: Any
    multiply_adds: dict[str, int]
    rounding: float | None = None
    not_finite: float = 0.0

    @property
    def has_values(self) -> bool:
        """Whether the outputs hold values: on the meta device there are none."""
        return _has_values(self.outputs)

    @property
    def has_numbers(self) -> bool:
        """Whether the outputs hold numbers to compare."""
        return self.has_values and self.not_finite < 1


def observe(model: nn.Module, inputs: Any, sites: Iterable[Site], rounding: bool = False) -> Observed:
    """Runs ``model`` on a copy of ``inputs`` in evaluation mode and leaves it as it was.

    ``rounding``: run it again with noise of the size of its arithmetic's rounding on what the sites give.
    Raises ArgumentError with what the model raised.
    """
    sites = list(sites)

    def measured(own: nn.Module) -> tuple[Any, dict[str, int]]:
        existing = dict(own.named_modules(remove_duplicate=False))
        modules = {s.name: existing[s.name] for s in sites if s.name in existing}
        return measure_multiply_adds(modules, lambda: call(own, copied_inputs(inputs)))

    def moved_by_noise(own: nn.Module) -> float:
        existing = dict(own.named_modules(remove_duplicate=False))
        with _noisy([existing[s.options.get("owner", s.name)] for s in sites], noise):
            return relative_error(outputs, call(own, copied_inputs(inputs))) + noise

    outputs, counts = _run(model, measured)
    moved = None
    values = _has_values(outputs)
    if rounding and values:
        noise = max((_arithmetic_error(p) for p in _kinds(model)), default=torch.finfo(torch.float32).eps)
        moved = _run(model, moved_by_noise)
    return Observed(inputs, outputs, counts, moved, share_not_finite(outputs) if values else 0.0)


def observe_other_size(model: nn.Module, inputs: Any, sites: Iterable[Site]) -> Observed | None:
    """:func:`observe` at another input size, where there is one that the model takes."""
    for ratio in OTHER_SIZES:
        other = resized_inputs(inputs, ratio)
        if _shapes(other) == _shapes(inputs):
            continue
        try:
            with Bounded():
                return observe(model, other, sites, rounding=True)
        except ArgumentError:  # a size that this model does not take, or that costs too much
            continue
    return None


def check_unchanged(model: nn.Module, before: Observed) -> float | None:
    """The relative error of ``model`` against what it was observed to give before its conversion; None where
    there are no numbers to compare.

    Raises ConversionError if it is more than rounding explains.
    """
    if not before.has_values or before.rounding is None:
        return None
    where = f"on inputs of {_shapes(before.inputs)}"
    try:
        outputs = _run(model, lambda own: call(own, copied_inputs(before.inputs)))
    except ArgumentError as failure:
        raise ConversionError(
            f"the converted model fails {where} where the original does not ({failure}); nothing was "
            "changed. Please report the model; include or exclude can narrow down the site"
        ) from failure
    error = relative_error(before.outputs, outputs)
    if not error <= ALLOWED * before.rounding:
        raise ConversionError(
            f"the converted model's output differs by {error:.2g} (relative) {where}, more than rounding "
            f"explains ({ALLOWED * before.rounding:.2g}); nothing was changed. "
            "Please report the model; include or exclude can narrow down the site"
        )
    return error if before.has_numbers else None


def told_not_finite(model: nn.Module, before: Iterable[Observed]) -> str:
    """What of the outputs could not be compared, and what may be the reason; empty if all could."""
    share, inputs = max(((o.not_finite, o.inputs) for o in before), key=lambda o: o[0], default=(0.0, None))
    if not share:
        return ""
    holder = parameter_not_finite(model)
    why = f", for its parameter {holder} holds such values" if holder else ""
    if share_not_finite(inputs):
        why = ", which hold such values"
    told = "all values" if share == 1 else f"{100 * share:.3g} % of the values"
    return (
        f"{told} that the model gives are NaN or infinite on inputs of {_shapes(inputs)}{why}: of these "
        "nothing could be compared"
    )


def _has_values(outputs: Any) -> bool:
    return all(not t.is_meta for t in tensors(outputs))


def _run(model: nn.Module, work: Callable[[nn.Module], Result]) -> Result:
    """What ``work`` returns of a copy of the model, ready to be run: what its forward writes down it writes
    there."""

    def run(own: nn.Module) -> Result:
        with random_state_kept(devices_of(own), 0):
            return work(own)

    try:
        return apart(model, run)
    except Exception as error:
        off = ", the hooks on it off (one by which it computes is known if it is a method of its modules)"
        raise ArgumentError(
            f"the model could not be run on example_inputs{off * has_hooks_off(model)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _shapes(inputs: Any) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    tree_map(lambda v: shapes.append(tuple(v.shape)) if isinstance(v, Tensor) else None, inputs)
    return shapes


def _kinds(model: nn.Module) -> list[tuple[torch.device, torch.dtype]]:
    """The devices and floating-point types in which a model computes."""
    kinds = {
        p.dtype for m in modules_of(model) for p in m._parameters.values() if p is not None and _floats(p)
    }
    return [(device, dtype) for device in devices_of(model) if device.type != "meta" for dtype in kinds]


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _arithmetic_error(kind: tuple[torch.device, torch.dtype]) -> float:
    """The relative error of convolutions on a device in a type, as they are now: TF32 and the like included.

    A small convolution is compared with itself in float64 on the CPU.
    """
    device, dtype = kind
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 16, 8, 8), (16, 16, 3, 3)
    x, w = (torch.randn(shape, generator=generator, device="cpu") for shape in shapes)
    x, w = x.to(dtype), w.to(dtype)
    try:
        exact = nn.functional.conv2d(x.double(), w.double())
        computed = nn.functional.conv2d(x.to(device), w.to(device)).cpu().double()
    except RuntimeError:  # a type in which this device has no convolution
        return torch.finfo(dtype).eps
    # a sum of a hundred products is off by a few times the type's own step; of float64 nothing finer tells
    return max(relative_error(exact, computed), 4 * torch.finfo(dtype).eps)


@contextmanager
def _noisy(modules: Iterable[nn.Module], noise: float) -> Iterator[None]:
    """What the modules give has noise added, relative to each value and to their root mean square."""

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        def one(y: Any) -> Any:
            if not isinstance(y, Tensor) or not y.is_floating_point() or not y.numel():
                return y
            # no random numbers: those of the model stay what they are
            wave = torch.arange(y.numel(), device=y.device, dtype=torch.float32).mul_(2.4).sin_()
            size = y.abs().nan_to_num(0, 0, 0)
            return y + ((size + size.square().mean().sqrt()) * noise * wave.reshape(y.shape)).to(y.dtype)

        return tree_map(one, output)

    handles = [module.register_forward_hook(add) for module in {id(m): m for m in modules}.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
