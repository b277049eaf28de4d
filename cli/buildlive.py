"""The live display of a build: every step with a mark and its time, the output of those that run below them.

Rule: imported only when stderr is a terminal, so that no other command pays for rich.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cli.buildview import Message, Step, View, follow
from cli.errors import CommandFailed

OUTPUT = 5
"""Lines of output shown below a step that runs."""

MARKS = {"done": ("✓", "green"), "cached": ("✓", "cyan"), "failed": ("✗", "red"), "canceled": ("·", "dim")}


class Screen(View):
    """Draws itself whenever rich asks."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._spinner = Spinner("dots")
        self._transfers: dict[str, str] = {}
        self._whole = Step(0, "")

    def text(self, text: str) -> None:
        self._console.print(Text(text.rstrip("\n"), style="yellow" if text.startswith("[Warning]") else ""))

    def transfer(self, message: Message) -> None:
        name, status = str(message.get("id", "")), str(message["status"])
        self._transfers[name] = f"{status} {message.get('progress') or ''}".strip()

    def __rich__(self) -> RenderableType:
        over = bool(self.image)
        done = sum(1 for step in self.steps.values() if step.state in ("done", "cached"))
        verb = "Built" if over else "Building"
        head = Text(f"[+] {verb} {self._whole.seconds:.1f}s ({done}/{self.total or '?'})", style="bold")
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", no_wrap=True)
        for step in sorted(self.steps.values(), key=lambda step: step.number)[-self._room() :]:
            self._row(table, step)
        table.expand = True
        return Group(head, table)

    def _room(self) -> int:
        """Steps that fit on the screen beside the output of two."""
        return max(3, self._console.size.height - 2 * OUTPUT - 3)

    def _row(self, table: Table, step: Step) -> None:
        if step.state:
            mark, color = MARKS.get(step.state, ("·", "dim"))
            right = "cached" if step.state == "cached" else f"{step.seconds:.1f}s"
            style = "dim" if step.state in ("cached", "canceled") else ""
            table.add_row(Text(mark, style=color), Text(step.name, style=style), Text(right, style=color))
            return
        table.add_row(self._spinner, Text(step.name), Text(f"{step.seconds:.1f}s", style="yellow"))
        lines = list(step.tail)[-OUTPUT:]
        if not lines and self._transfers:
            lines = [f"{name}: {text}" for name, text in list(self._transfers.items())[-OUTPUT:]]
        for line in lines:
            table.add_row("", Text(f"  {line}", style="dim"), "")


def live(messages: Iterable[Message], console: Console | None = None) -> str:
    """Show ``messages`` until they end; the image's id."""
    console = console or Console(stderr=True)
    screen = Screen(console)
    try:
        with Live(screen, console=console, refresh_per_second=10, transient=False):
            return follow(screen, messages)
    except CommandFailed:
        for line in screen.failure():
            console.print(Text(line))
        raise
