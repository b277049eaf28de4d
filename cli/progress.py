"""Docker's JSON progress messages on the screen: a live display on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from cli.errors import CommandFailed

Message = dict[str, Any]


def show(messages: Iterable[Message], *, quiet: bool = False) -> list[Any]:
    """Print ``messages`` until they end; returns their ``aux`` values. An ``error`` raises ``CommandFailed``."""
    aux: list[Any] = []
    checked = _checked(messages, aux)
    if quiet or not sys.stderr.isatty():
        _plain(checked, quiet)
    else:
        from cli.bars import draw

        draw(checked)
    return aux


def _checked(messages: Iterable[Message], aux: list[Any]) -> Iterator[Message]:
    for message in messages:
        if "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail") or {}
            raise CommandFailed(str(detail.get("message") or message.get("error")))
        if "aux" in message:
            aux.append(message["aux"])
        else:
            yield message


def _plain(messages: Iterable[Message], quiet: bool) -> None:
    """One line for each new status; numbers are left out, so that a log stays short."""
    said: dict[str, str] = {}
    for message in messages:
        if quiet:
            continue
        name, status = str(message.get("id", "")), str(message.get("status", ""))
        if "stream" in message:
            print(str(message["stream"]).rstrip("\n"), file=sys.stderr)
        elif not name or said.get(name) != status:
            said[name] = status
            print(f"{name}: {status}" if name else status, file=sys.stderr)
