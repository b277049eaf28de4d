"""The two prctl(2) calls that a shim process needs."""

from __future__ import annotations

import contextlib

from runc_py import syscalls

_PR_SET_NAME_LIMIT = 15


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children (PR_SET_CHILD_SUBREAPER)."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name that ``ps`` and /proc/<pid>/comm show, at most 15 bytes."""
    with contextlib.suppress(OSError):
        syscalls.set_process_name(name[:_PR_SET_NAME_LIMIT])
