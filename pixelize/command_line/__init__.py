"""The command line."""

from __future__ import annotations

import sys

from pixelize.errors import MissingExtraError
from pixelize.extras import require


def main() -> None:
    """The ``pixelize`` script. Where the command line's libraries are missing, one sentence that says what to
    install."""
    try:
        require("cli", "the command line")
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    from pixelize.command_line.app import main as run

    run()
