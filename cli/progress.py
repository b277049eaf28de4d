"""Docker's JSON progress messages on the screen: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from cli.errors import CommandFailed

Message = dict[str, Any]


def show(messages: Iterable[Message], *, quiet: bool = False) -> list[Any]:
    """Print ``messages`` until they end; returns their ``aux`` values. An ``error`` raises ``CommandFailed``."""
    if quiet or not sys.stderr.isatty():
        return _plain(messages, quiet)
    return _bars(messages)


def _checked(messages: Iterable[Message], aux: list[Any]) -> Iterable[Message]:
    for message in messages:
        if "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail") or {}
            raise CommandFailed(str(detail.get("message") or message.get("error")))
        if "aux" in message:
            aux.append(message["aux"])
        else:
            yield message


def _plain(messages: Iterable[Message], quiet: bool) -> list[Any]:
    aux: list[Any] = []
    said: dict[str, str] = {}
    for message in _checked(messages, aux):
        if quiet:
            continue
        name, status = str(message.get("id", "")), str(message.get("status", ""))
        if "stream" in message:
            print(str(message["stream"]).rstrip("\n"), file=sys.stderr)
        elif not name or said.get(name) != status:
            said[name] = status
            print(f"{name}: {status}" if name else status, file=sys.stderr)
    return aux


def _bars(messages: Iterable[Message]) -> list[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    aux: list[Any] = []
    columns = (
        TextColumn("[cyan]{task.fields[name]}"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}
        for message in _checked(messages, aux):
            name, status = str(message.get("id", "")), str(message.get("status", ""))
            detail = message.get("progressDetail") or {}
            if not name:
                progress.console.print(str(message.get("stream", status)).rstrip("\n"), markup=False, highlight=False)
                continue
            if name not in tasks:
                tasks[name] = progress.add_task(status, name=name, total=None)
            total, current = detail.get("total"), detail.get("current")
            done = status.endswith(("complete", "exists"))
            if done:
                total = current = progress.tasks[tasks[name]].total or 1
            progress.update(tasks[name], description=status, total=total, completed=current)
    return aux
