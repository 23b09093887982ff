"""What a forward gives: of a generator, what it yields."""

from __future__ import annotations

from itertools import islice
from types import GeneratorType
from typing import Any

MOST = 64
"""So much of a generator is read: it may have no end."""


def read(output: Any) -> Any:
    """``output``; of a generator, which has run nothing yet, the first ``MOST`` of what it yields."""
    return tuple(islice(output, MOST)) if isinstance(output, GeneratorType) else output
