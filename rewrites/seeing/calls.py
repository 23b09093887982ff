"""Which calls of modules are under way while a model runs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Calls:
    """The calls under way: each a module's name and the call's number, the outermost first."""

    def __init__(self) -> None:
        self.now: tuple[tuple[str, int], ...] = ()
        self.count = 0

    @property
    def innermost(self) -> str:
        """The name of the module that runs; ``""`` while none does."""
        return self.now[-1][0] if self.now else ""

    def follow(self, module: nn.Module, name: str) -> list[RemovableHandle]:
        """Hooks that note each call of ``module``, whether or not it ends well."""

        def enter(module: nn.Module, args: Any) -> None:
            self.count += 1
            self.now += ((name, self.count),)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.now = self.now[:-1]

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]
