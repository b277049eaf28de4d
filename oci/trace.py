"""Spans: how long what took, in every process of the stack, on one clock.

Rule: what is traced knows nothing of it. A room that can be traced has a list of its steps (``engine/traced.py`` and
its like), which is read only when ``GANTRY_TRACE`` names a directory as the process starts; ``wrap`` then replaces each
function by one that writes down when it ran. Each process appends a JSON line per span to a file of its own,
``<directory>/<pid>.jsonl``: ``{"name", "start", "end"}``, nanoseconds of ``CLOCK_MONOTONIC``, which all processes of a
host share. Standard library only, and safe over ``fork``. ``tests/bench/trace.py`` makes a table of the files.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

VARIABLE = "GANTRY_TRACE"
directory = os.environ.get(VARIABLE, "")
"""Where spans go; empty when nobody asked."""

CO_COROUTINE = 0x80
"""Of a function that was defined with ``async def`` (``inspect``)."""

Name = str | Callable[..., str]
"""A span's name, or what makes one of the call's arguments."""

_file = [0, -1, 0]
"""(pid, descriptor, inode) of the file that is open: another pid means that we were forked since, another inode that
the process closed what it did not know, as an init does, and has opened something else."""


def record(name: str, start: int, end: int) -> None:
    """Write a span whose times are known."""
    if not _is_open():
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(f"{directory}/{os.getpid()}.jsonl", flags, 0o600)
        _file[:] = os.getpid(), fd, os.fstat(fd).st_ino
    os.write(_file[1], f'{{"name":"{name}","start":{start},"end":{end}}}\n'.encode())


def _is_open() -> bool:
    pid, fd, inode = _file
    try:
        return pid == os.getpid() and os.fstat(fd).st_ino == inode
    except OSError:
        return False


def wrap(owner: Any, attribute: str, name: Name) -> None:
    """Make every call of a function or method of ``owner`` (a module or class) a span.

    One of a coroutine function lasts until it returns, what it waited for included.
    """
    function = vars(owner)[attribute]
    static = isinstance(function, staticmethod)
    plain = function.__func__ if static else function
    asynchronous = plain.__code__.co_flags & CO_COROUTINE
    traced = (_traced_coroutine if asynchronous else _traced)(plain, name)
    setattr(owner, attribute, staticmethod(traced) if static else traced)


def _traced(function: Callable[..., Any], name: Name) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        start = time.monotonic_ns()
        try:
            return function(*arguments, **options)
        finally:
            record(name if isinstance(name, str) else name(*arguments, **options), start, time.monotonic_ns())

    return traced


def _traced_coroutine(function: Callable[..., Any], name: Name) -> Callable[..., Any]:
    @functools.wraps(function)
    async def traced(*arguments: Any, **options: Any) -> Any:
        start = time.monotonic_ns()
        try:
            return await function(*arguments, **options)
        finally:
            record(name if isinstance(name, str) else name(*arguments, **options), start, time.monotonic_ns())

    return traced
