"""A recording double of ``runc_py.syscalls``: every privileged call is written down and none is made."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runc_py import syscalls

_NAMES = {getattr(syscalls, name): name for name in dir(syscalls) if name.startswith("PR_")}
_IDENTITY = ("setgroups", "setresgid", "setresuid", "umask", "fchown")


class Recorder:
    """``calls`` in order, as ``name(arguments)``; prctl by the name of its option."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def note(self, name: str, *arguments: Any) -> int:
        """Write one call down; a descriptor-like answer."""
        if name == "prctl" and arguments:
            name, arguments = _NAMES.get(arguments[0], name), arguments[1:]
        self.calls.append(f"{name}({', '.join(map(str, arguments))})")
        return 0

    def names(self) -> list[str]:
        """The calls without their arguments, repetitions as one."""
        found: list[str] = []
        for call in self.calls:
            name = call.partition("(")[0]
            if found[-1:] != [name]:
                found.append(name)
        return found


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Replace the calls of ``syscalls`` and those that change who a process is in ``os``."""
    recorder = Recorder()

    def double(name: str) -> Any:
        return lambda *arguments, **_: recorder.note(name, *arguments)

    with monkeypatch.context() as patch:
        for name, _ in inspect.getmembers(syscalls, inspect.isfunction):
            if not name.startswith("_"):
                patch.setattr(syscalls, name, double(name))
        for name in _IDENTITY:
            patch.setattr(os, name, double(name))
        yield recorder
