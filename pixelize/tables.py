"""Tables and sentences for terminals of any width, pipes and notebooks. Nothing is ever cut off."""

from __future__ import annotations

import html
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

GAP = "  "


def terminal_width() -> int:
    """Columns of the terminal (or of the variable COLUMNS); 100 where there is none, as in a pipe."""
    return max(20, shutil.get_terminal_size((100, 24)).columns)


@dataclass(frozen=True)
class Table:
    """Rows of strings under heads; the first ``words`` columns hold words, the others numbers."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def text(self, width: int | None = None) -> str:
        """The table in lines of ``width``, the terminal's by default.

        Cells break between words, the widest columns' first; where that is not enough, each row becomes a
        block, a cell to a line.
        """
        width = width or terminal_width()
        columns = list(zip(self.heads, *self.rows, strict=True))
        sizes = [max(map(len, column)) for column in columns]
        least = [max(len(word) for cell in column for word in (cell.split() or [""])) for column in columns]
        while sum(sizes) + len(GAP) * (len(sizes) - 1) > width:
            shrinking = [i for i, size in enumerate(sizes) if size > least[i]]
            if not shrinking:
                return "\n".join(self._block(row, width) for row in self.rows)
            sizes[max(shrinking, key=lambda i: (i < self.words, sizes[i]))] -= 1
        lines = [self.heads, ["-" * size for size in sizes], *self.rows]
        return "\n".join(self._lines(line, sizes) for line in lines)

    def _lines(self, cells: Sequence[str], sizes: Sequence[int]) -> str:
        """One row: as many lines as its longest cell needs."""
        broken = [
            textwrap.wrap(cell, size, break_long_words=False, break_on_hyphens=False) if cell else []
            for cell, size in zip(cells, sizes, strict=True)
        ]
        return "\n".join(
            GAP.join(
                part.ljust(size) if i < self.words else part.rjust(size)
                for i, (part, size) in enumerate(zip(parts, sizes, strict=True))
            ).rstrip()
            for parts in zip_longest(*broken, fillvalue="")
        )

    def _block(self, row: Sequence[str], width: int) -> str:
        cells = [f"{h}: {cell}" if h else cell for h, cell in zip(self.heads, row, strict=True) if cell]
        return wrapped([*cells[:1], *(GAP + cell for cell in cells[1:])], width)

    def html(self) -> str:
        """The table as an HTML element; whatever the cells hold is escaped."""

        def line(cells: Sequence[str], tag: str) -> str:
            styles = ("text-align:left" if i < self.words else "text-align:right" for i in range(len(cells)))
            parts = (
                f'<{tag} style="{style}">{html.escape(cell)}</{tag}>'
                for cell, style in zip(cells, styles, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><thead>{line(self.heads, 'th')}</thead><tbody>{body}</tbody></table>"


def wrapped(lines: Iterable[str], width: int | None = None) -> str:
    """Sentences in lines of ``width`` (the terminal's by default), broken between words.

    What follows a break is indented by four more. A word that is longer than a line stays whole.
    """
    width = width or terminal_width()
    return "\n".join(
        textwrap.fill(
            line.lstrip(), width, initial_indent=(indent := " " * (len(line) - len(line.lstrip()))),
            subsequent_indent=indent + "    ", break_long_words=False, break_on_hyphens=False,
        )
        for line in lines
    )  # fmt: skip


def html_lines(lines: Iterable[str]) -> str:
    """Sentences as HTML paragraphs, escaped."""
    return "".join(f"<div>{html.escape(line)}</div>" for line in lines)
