"""A progress bar: on standard error in terminals, as an output of its own in notebooks, nothing elsewhere."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(show: bool) -> Progress:
    """A rich ``Progress`` to be entered, gone when it is left. The process's streams stay as they are."""
    from rich.console import Console
    from rich.progress import Progress

    if show and Console(stderr=True).is_jupyter:
        return _in_notebooks()
    console = Console(stderr=True, force_jupyter=False)
    return Progress(
        console=console, transient=True, disable=not show, redirect_stdout=False, redirect_stderr=False
    )


def _in_notebooks() -> Progress:
    """One output that changes in place. (rich's own needs ipywidgets, and a saved notebook keeps every line
    that was written over.)"""
    from IPython.display import HTML, display
    from rich.progress import Progress

    class NotebookProgress(Progress):
        output: Any = None

        def start(self) -> None:
            self.output = display(HTML(""), display_id=True)

        def stop(self) -> None:
            self.output.update(HTML(""))

        def advance(self, task_id: Any, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self.refresh()

        def refresh(self) -> None:
            self.output.update(HTML("".join(map(_element, self.tasks))))

    return NotebookProgress(auto_refresh=False)


def _element(task: Any) -> str:
    left = task.time_remaining
    told = f"{html.escape(task.description)}: {task.percentage:.0f} %" + (
        f", {left:.0f} s left" if left else ""
    )
    return f'<div><progress value="{task.completed}" max="{task.total or 1}"></progress> {told}</div>'
