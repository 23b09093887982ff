"""Torch's function modes, left safely."""

from __future__ import annotations

from typing import Any

from torch import overrides
from torch.overrides import TorchFunctionMode


class SafeFunctionMode(TorchFunctionMode):
    """A mode that can be left after an interrupt in torch's own code.

    Torch takes a mode off its stack while the mode handles a function. An interrupt then may keep it from
    being put on again, and ``TorchFunctionMode`` would raise a RuntimeError in the interrupt's place, or take
    off another mode.
    """

    def __exit__(self, *error: Any) -> None:
        if self in overrides._get_current_function_mode_stack():
            super().__exit__(*error)
