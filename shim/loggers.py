"""``binary://``: a program of the client's that takes a container's output (containerd's logging drivers).

Rule: the program reads the container's own pipes, nothing is copied, and it outlives the shim: it ends by itself at the
end of file. Source: containerd, core/runtime/v2/README.md, "Logging": descriptor 3 is standard output, 4 error,
closing 5 says "ready"; the query of the URI becomes arguments.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from typing import NamedTuple

from oci import errors
from shim.stdio import Target

_READY_SECONDS = 10.0
_FIRST_FREE = 16
"""Descriptors are moved above those that the program is given, so that none is overwritten on the way."""


class Owner(NamedTuple):
    """Whose output it is: what the program finds in CONTAINER_ID and CONTAINER_NAMESPACE."""

    container_id: str
    namespace: str


class Ends(NamedTuple):
    """Writing ends for the process, and reading ends held so that a program that dies breaks no pipe."""

    stdout: int
    stderr: int
    hold_stdout: int
    hold_stderr: int


def start(target: Target, owner: Owner) -> Ends:
    """Start the program of ``target`` and wait until it is ready. Raises ``GantryError``; leaks nothing."""
    opened: list[int] = []
    try:
        pairs = [_pipe(opened) for _ in range(3)]
        _spawn(target, owner, [pairs[0][0], pairs[1][0], pairs[2][1]])
        os.close(pairs[2][1])
        opened.remove(pairs[2][1])
        _await_ready(pairs[2][0], target)
    except BaseException:
        for descriptor in opened:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        raise
    os.close(pairs[2][0])
    return Ends(pairs[0][1], pairs[1][1], pairs[0][0], pairs[1][0])


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = []
    for descriptor in os.pipe2(os.O_CLOEXEC):
        ends.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))
        os.close(descriptor)
    opened.extend(ends)
    return ends[0], ends[1]


def _spawn(target: Target, owner: Owner, given: list[int]) -> None:
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    ]
    actions += [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate(given, 3)]
    names = {"CONTAINER_ID": owner.container_id, "CONTAINER_NAMESPACE": owner.namespace}
    try:
        os.posix_spawn(
            target.path, [target.path, *target.arguments], {**os.environ, **names}, file_actions=actions, setsid=True
        )
    except FileNotFoundError:
        raise errors.NotFound(f"logging program {target.path} does not exist") from None
    except OSError as error:
        raise errors.FailedPrecondition(f"logging program {target.path} cannot be run: {error.strerror}") from error


def _await_ready(ready: int, target: Target) -> None:
    """Whatever it writes, and its end of file, mean that it reads from now on."""
    if not select.select([ready], [], [], _READY_SECONDS)[0]:
        raise errors.DeadlineExceeded(
            f"logging program {target.path} did not get ready within {_READY_SECONDS:g} s",
            hint="it must close descriptor 5 when it is",
        )
