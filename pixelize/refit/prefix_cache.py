"""Running a model on the same batches again and again when only some of its weights change in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pixelize.refit.calls import Call, Compute, Watch


class Replay:
    """Keeps what the operators gave that run before the first changing one, and gives it again.

    Args:
        first: number of the first call (:mod:`pixelize.refit.calls`) whose weight changes.
        per_run: calls in one run; a batch may be run in several.
        limit: bytes to keep at most; what is beyond is computed each time.
    """

    def __init__(self, first: int, per_run: int, limit: int) -> None:
        self.first, self.per_run, self.left = first, per_run, limit
        self.kept: dict[int, dict[int, Tensor]] = {}

    @contextmanager
    def batch(self, key: int) -> Iterator[None]:
        """Run the model in this on batch number ``key``: the first time to keep, then to be given again."""
        known = key in self.kept
        kept = self.kept.setdefault(key, {})

        def each(number: int, call: Call, compute: Compute) -> Tensor:
            if number in kept and known:
                return kept[number].clone()  # what follows may work in place
            output = compute(call.input)
            if number % self.per_run < self.first and not known and output.nbytes <= self.left:
                self.left -= output.nbytes
                kept[number] = output.detach().clone()
            return output

        with Watch(each):
            yield

    def forget(self) -> None:
        """Drops all that is kept."""
        self.left += sum(t.nbytes for outputs in self.kept.values() for t in outputs.values())
        self.kept = {}
