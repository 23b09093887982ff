"""What a folder from a stranger may have done by naming what its model is built from: nothing that runs or
fetches code.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pixelize.errors import LoadError

LOADED = {"subfolder", "variant"}
"""Options that a noted ``from_pretrained`` may have."""
WEIGHTS = {"encoder_weights", "pretrained"}
"""Options that only choose weights, which a saved folder brings itself: left out instead of fetched."""
_REACHES_OUT = frozenset(
    ("trust", "remote", "code", "custom", "pretrained", "weights", "checkpoint", "kernels", "implementation",
     "cache", "proxies", "url", "file", "token", "auth", "revision", "hub", "repo")
)  # fmt: skip
"""Words in the names of options that may run or fetch code."""
_WORD = re.compile(r"[\w.+-]*")


def refused_part(scheme: str, name: str, options: dict[str, Any]) -> str | None:
    """What in a noted source of a library's model could run or fetch code; None if nothing could.

    A library's classes are built from numbers and plain words; folders and hub ids are loaded with
    :data:`LOADED` alone.
    """
    loaded = scheme in ("diffusers", "transformers") and ("/" in name or Path(name).exists())
    if not loaded and not _WORD.fullmatch(name):
        return f"the name {name!r}"
    for key, value in options.items():
        known = key in LOADED if loaded else _REACHES_OUT.isdisjoint(key.lower().split("_"))
        if not known or not _is_plain(value):
            return f"the option {key}={value!r}"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float)


def check_config(folder: Path) -> None:
    """Raises LoadError if a folder's ``config.json`` names attention or other kernels to be fetched from a
    hub and run, which transformers would do without asking.
    """

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                if "implementation" in key and "/" in str(part):
                    raise LoadError(
                        f"{folder}: its config.json has {key}={part!r}: code that would be fetched and run; "
                        "remove the entry, or load the model yourself"
                    )
                look(part)
        elif isinstance(value, list):
            for part in value:
                look(part)

    with suppress(OSError, ValueError, RecursionError):  # transformers itself will say what is wrong
        look(json.loads((folder / "config.json").read_text()))
