"""The live display of transfers: a line for each layer, with a bar while it moves and a tick when it is done.

Rule: imported only when stderr is a terminal, so that no other command pays for rich.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from cli.tables import size

DONE = ("Pull complete", "Already exists", "Pushed", "Layer already exists", "Mounted")
MOVING = ("Downloading", "Extracting", "Pushing", "Loading layer")
COLORS = {"Downloading": "cyan", "Extracting": "magenta", "Pushing": "cyan", "Retrying": "yellow", "Waiting": "dim"}


class Mark(SpinnerColumn):
    """A tick for what is done, a spinner for what moves, a dot for what waits."""

    def render(self, task: Task) -> Any:
        if task.fields["done"]:
            return Text("✓", style="green")
        return super().render(task) if task.fields["moving"] else Text("·", style="dim")


class Amount(ProgressColumn):
    """How much of how much, and how fast."""

    def render(self, task: Task) -> Text:
        if not task.fields["moving"] or not task.total:
            return Text(size(int(task.total)) if task.total and task.fields["done"] else "", style="dim")
        speed = f"  {size(int(task.speed))}/s" if task.speed else ""
        return Text(f"{size(int(task.completed))} / {size(int(task.total))}{speed}")


class Bar(BarColumn):
    """A bar, only while there is something to show."""

    def render(self, task: Task) -> Any:
        return super().render(task) if task.fields["moving"] and task.total else Text("")


class Display:
    """The lines of one transfer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, message: dict[str, Any]) -> None:
        """Show one message."""
        name, status = str(message.get("id", "")), str(message.get("status", ""))
        if not name or status.startswith("Pulling from"):
            text = str(message.get("stream", status)).rstrip("\n")
            style = "green" if text.startswith("Status:") else "dim" if text.startswith("Digest:") else ""
            self._progress.console.print(f"{text}", style=style, markup=False, highlight=False)
            return
        detail = message.get("progressDetail") or {}
        moving = status in MOVING
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task("", name=name, total=None, moving=False, done=False)
        task = self._progress.tasks[self._progress.task_ids.index(self._tasks[name])]
        if moving and task.description != self._described(status):
            # A new phase counts, and is timed, from its start.
            self._progress.reset(task.id, total=detail.get("total"))
        self._progress.update(
            task.id,
            description=self._described(status),
            total=detail.get("total") or task.total,
            completed=detail.get("current"),
            moving=moving,
            done=status.startswith(DONE),
        )

    @staticmethod
    def _described(status: str) -> str:
        color = COLORS.get(status.partition(" ")[0], "")
        return f"[{color}]{status}[/]" if color else status


def draw(messages: Iterable[dict[str, Any]], console: Console | None = None) -> None:
    """Show ``messages`` until they end."""
    columns = (
        Mark("dots"),
        TextColumn("[bold]{task.fields[name]}"),
        TextColumn("{task.description}"),
        Bar(bar_width=32),
        Amount(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        display = Display(progress)
        for message in messages:
            display(message)
