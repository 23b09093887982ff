"""A converted model beside the one it was made of: the same layer's input in the one and output in the
other, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.calibration.layer_fit import Layer
from pixelize.errors import ArgumentError, PixelizeError
from pixelize.inheritance.build import build_layer
from pixelize.inheritance.record import (
    Record,
    converted_modules,
    inner_layer,
    origin_now,
    original,
    record_of,
)
from pixelize.layers.pixel_conv import PixelConvolution
from pixelize.layers.pixel_dcl import PixelDeconvolution
from pixelize.rewrites import become, state_of
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.splice import State
from pixelize.running.outputs import share_not_finite
from pixelize.running.pictures import run

CACHE_BYTES = 2**28
"""What one layer's pairs may take up in memory so that they are kept from pass to pass."""


class CachedPairs:
    """A layer's pairs, made anew in every pass over them, or kept after the first one if they take up
    no more than ``limit`` bytes; of data that has a length the first pair tells.
    """

    def __init__(
        self, models: TeacherStudent, name: str, data: Iterable[Any], calls: int, limit: int = CACHE_BYTES
    ) -> None:
        self._make = partial(models.pairs, name, data, calls)
        self._limit = limit
        self._expected = len(data) * calls if isinstance(data, Sized) else 0
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Tensor, Tensor]] = []
        size, fits = 0, True
        for number, (x, y) in enumerate(self._make(), 1):
            size += x.nbytes + y.nbytes
            fits = fits and size * max(1, self._expected / number) <= self._limit
            if fits:
                kept.append((x, y))
            else:
                kept.clear()
            yield x, y
        if fits:
            self._kept = kept


class _Enough(Exception):
    """Raised inside a forward once all that was asked for has been seen."""


class TeacherStudent:
    """The student, a converted model, and its teacher, the same model with its original up-samplers, which
    take turns in one set of modules.

    Nothing is copied: for the teacher's turn the converted modules become what their records say they were.

    Raises PixelizeError if the model was not converted or was loaded without its original weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = getattr(model, "_orig_mod", model)
        self.modules = converted_modules(self.model)
        if not self.modules:
            raise PixelizeError(f"this {type(model).__name__} was not converted: call pixelize.convert first")
        self._teachers = {name: _teacher_state(name, module) for name, module in self.modules.items()}

    def layer(self, name: str) -> _ConvNd:
        """The layer of a converted module as it is now: itself or the one inside it."""
        return inner_layer(self.modules[name])

    def students(self) -> dict[str, Layer]:
        """The layers with dependencies by the name of the module that a conversion put there."""
        layers = {name: self.layer(name) for name in self.modules}
        return {
            name: layer
            for name, layer in layers.items()
            if isinstance(layer, PixelDeconvolution | PixelConvolution)
        }

    def calls(self, batch: Any) -> dict[str, int]:
        """How often each converted module is called on ``batch``, in the order of the first calls."""
        seen: dict[str, int] = {}

        def count(name: str) -> Any:
            def hook(*_: Any) -> None:
                seen[name] = seen.get(name, 0) + 1

            return hook

        handles = [self.layer(name).register_forward_hook(count(name)) for name in self.modules]
        try:
            with evaluation(self.model):
                self._call(batch)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def pairs(self, name: str, data: Iterable[Any], calls: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each call of a layer on each batch: the student's input (N, C_in, h, w) and the teacher's
        output (N, C_out, H, W).

        Raises ArgumentError if one of them holds NaN or infinity, to which nothing can be fitted.
        """
        for batch in data:
            with evaluation(self.model), self.teaching():
                outputs = [y for _, y in self._record(name, batch, calls)]
            with evaluation(self.model):
                inputs = [x for x, _ in self._record(name, batch, calls)]
            if [len(x) for x in inputs] != [len(y) for y in outputs]:
                raise ArgumentError(
                    f"{name}: called {len(outputs)} times in the original model and {len(inputs)} times "
                    "in the converted one, or on other batch sizes"
                )
            if share := max(share_not_finite(inputs), share_not_finite(outputs)):
                raise ArgumentError(
                    f"{name}: {100 * share:.3g} % of the values that it reads or makes are NaN or infinite "
                    "on an item of data, and nothing can be fitted to that; leave such items out, or "
                    "mend the model's weights"
                )
            yield from zip(inputs, outputs, strict=True)

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """In this the model is the teacher."""
        students = {name: state_of(module) for name, module in self.modules.items()}
        try:
            for name, state in self._teachers.items():
                become(self.modules[name], state)
            yield
        finally:
            for name, state in students.items():
                become(self.modules[name], state)

    def _record(self, name: str, batch: Any, calls: int) -> list[tuple[Tensor, Tensor]]:
        seen: list[tuple[Tensor, Tensor]] = []

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            last = len(seen) == calls - 1
            # what runs after the layer may overwrite its tensors in place, unless nothing does
            x, y = (_batched(t.detach() if last else t.detach().clone(), axes) for t in (x, output))
            seen.append((x, y))
            if last:
                raise _Enough

        layer = self.layer(name)
        axes = len(layer.stride)
        handle = layer.register_forward_hook(hook, with_kwargs=True, prepend=True)
        try:
            self._call(batch)
        except _Enough:
            pass
        finally:
            handle.remove()
        return seen

    def _call(self, batch: Any) -> None:
        try:
            run(self.model, batch)
        except (_Enough, KeyboardInterrupt):
            raise
        except Exception as error:
            raise ArgumentError(
                f"the model could not be run on an item of data: {type(error).__name__}: {error}"
            ) from error


def _teacher_state(name: str, module: nn.Module) -> State:
    record: Record = record_of(module)  # type: ignore[assignment]
    if record.origin is None:
        raise PixelizeError(
            f"{name}: its original weights are not at hand (the model was loaded, or hardened); convert the "
            "original model again"
        )
    before = original(replace(record, origin=origin_now(record, module)))
    plain, _, _ = build_layer(record.site, before, "dcl", record.design, "inherit")
    if plain is before:
        plain.training = False
    else:
        plain.eval()
    return state_of(plain)


def _batched(x: Tensor, axes: int) -> Tensor:
    return x[None] if x.dim() == axes + 1 else x
