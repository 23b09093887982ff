"""Running a model on the same batches again and again when only some of its layers change in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

COSTLY = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Replay:
    """Keeps what costly layers gave that run once, before any of the changing ones, and gives it again.

    Args:
        model: in evaluation mode.
        changing: modules of it whose weights will change.
        limit: bytes to keep at most; what is beyond is computed each time.
    """

    def __init__(self, model: nn.Module, changing: Iterable[nn.Module], limit: int = 2**30) -> None:
        self.changing = set(changing)
        self.costly = [m for m in model.modules() if isinstance(m, COSTLY) or m in self.changing]
        self.left = limit
        self.kept: dict[int, dict[nn.Module, Tensor]] = {}

    @contextmanager
    def batch(self, key: int) -> Iterator[None]:
        """Run the model in this on batch number ``key``: the first time to keep, then to be given again."""
        if key in self.kept:
            with self._given(self.kept[key]):
                yield
            return
        seen: list[tuple[nn.Module, Tensor | None]] = []
        handles = [m.register_forward_hook(self._look(seen)) for m in self.costly]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        order = [m for m, _ in seen]
        first = next((n for n, m in enumerate(order) if m in self.changing), 0)
        self.kept[key] = {m: out for m, out in seen[:first] if out is not None and order.count(m) == 1}

    def _look(self, seen: list[tuple[nn.Module, Tensor | None]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            early = not any(m in self.changing for m, _ in seen) and module not in self.changing
            if not early or type(output) is not Tensor or output.nbytes > self.left:
                seen.append((module, None))
                return
            self.left -= output.nbytes
            seen.append((module, output.detach().clone()))  # what follows may work in place

        return hook

    @contextmanager
    def _given(self, outputs: dict[nn.Module, Tensor]) -> Iterator[None]:
        try:
            for module, output in outputs.items():
                module.__dict__["forward"] = lambda *args, output=output, **kwargs: output.clone()
            yield
        finally:
            for module in outputs:
                del module.__dict__["forward"]

    def forget(self) -> None:
        """Drops all that is kept."""
        self.left += sum(t.nbytes for outputs in self.kept.values() for t in outputs.values())
        self.kept = {}
