"""Tables, lines and progress bars on a terminal: captions, ids and paths are shown and never obeyed.

Beside what ``visible`` spells out, text of data may hold rich's markup (``[red]``) and emoji codes
(``:dog:``), which are letters here. All that the project prints with rich goes through this file; a test
looks for exceptions.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scst.data.visible import visible, visible_lines


def plain(text: object, style: str = "") -> Text:
    """Text for rich that is shown as it is: no markup, no emoji codes, no control characters."""
    return Text(visible_lines(str(text)), style)


def labelled(label: str, style: str, text: object) -> Text:
    """A line that begins with a label in a style of rich; the rest has none."""
    return Text.assemble((visible_lines(label), style), " ", visible_lines(str(text)))


class PlainTable(Table):
    """A table whose heads, cells, title and caption are shown as they are.

    Args:
        heads: of the columns.
        title: above the table.
        settings: as of rich's table.
    """

    def __init__(self, *heads: str, title: str = "", **settings: Any):
        super().__init__(title=plain(title, "table.title") if title else None, **settings)
        for head in heads:
            self.add_column(head)

    def add_column(self, header: RenderableType = "", *arguments: Any, **settings: Any) -> None:
        """Add a column."""
        super().add_column(_as_text(header), *arguments, **settings)

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """Add a line; a cell that needs a style is made with :func:`plain`."""
        super().add_row(*map(_as_text, cells), **settings)


def _as_text(cell: Any) -> Any:
    return plain(cell) if isinstance(cell, str) else cell


class PlainColumn(TextColumn):
    """A column of a progress bar whose text is shown as it is.

    Args:
        text: with the fields of the task in braces.
        style: of rich.
    """

    def __init__(self, text: str = "{task.description}", style: str = ""):
        super().__init__(text, style=style, markup=False)

    def render(self, task: Task) -> Text:
        """The text of a task."""
        return plain(visible(self.text_format.format(task=task)), str(self.style))


def progress_bar(console: Console, **settings: Any) -> Progress:
    """A progress bar with rich's usual columns; titles of tasks are shown as they are."""
    columns = PlainColumn(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, **settings)
