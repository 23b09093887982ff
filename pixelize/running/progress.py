"""A progress bar on standard error: in terminals and in notebooks, nothing elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(show: bool) -> Progress:
    """A rich ``Progress`` to be entered, gone when it is left. The process's streams stay as they are."""
    from rich.console import Console
    from rich.progress import Progress

    # rich's own bar for notebooks needs ipywidgets; a carriage return does there too
    notebook = Console(stderr=True).is_jupyter
    console = Console(stderr=True, force_jupyter=False, force_terminal=True if notebook else None)
    return Progress(
        console=console, transient=True, disable=not show, redirect_stdout=False, redirect_stderr=False
    )
