"""A fork for the runtime's work, made before there is any: what a container then waits for is only the work.

Rule: it is like every fork of ``apart``, a child of the shim that dies with it, and knows nothing of a container until
it is told. Its own copy of the memory it writes to is made while nobody waits, and so is a first process for the
container (``runc_py.waiting``). Which memory that is, the first worker tells when its container is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from protos import fdpass
from runc_py import syscalls
from runc_py.cgroups import CgroupError, layout
from runc_py.waiting import WaitingInit
from shim import memory, prctl
from shim.apart import Answer, Kept, Killed, answer_calls

Begin = Callable[
    [dict[str, Any], list[int], WaitingInit | None], tuple[str, Callable[[], Answer], Callable[[], Answer]]
]
"""From a packet, its descriptors and the waiting init: the bundle, the work, and the work after that."""


class Written(NamedTuple):
    """Memory that a worker and a container's init write to."""

    worker: memory.Ranges
    init: memory.Ranges


class Worker(Kept):
    """The shim's side: ``give`` it a packet, and later ``ask``, or ``dismiss`` it."""

    __slots__ = ()

    def __init__(
        self, begin: Begin, written: Written | None, foreign: Sequence[socket.socket] = (), report: int = -1
    ) -> None:
        """``foreign`` sockets are not for it; it writes a ``Written`` to the descriptor ``report``."""
        super().__init__(lambda peer: _work(peer, begin, written, foreign, report))

    def give(self, packet: dict[str, Any], descriptors: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        """The answer of the first piece of work. Raises as ``apart``; it is dismissed then."""
        try:
            try:
                fdpass.send(self._peer, packet, descriptors)
            except (OSError, ValueError) as error:
                raise Killed(f"the runtime's worker cannot be told what to do: {error}") from error
            return self.answer()
        except BaseException:
            self.dismiss()
            raise


def parsed(report: bytes) -> Written | None:
    """What a worker has written to its ``report``; None when it could not, or was killed over it."""
    try:
        values = json.loads(report)
        return Written(*([(start, length) for start, length in ranges] for ranges in values))
    except (ValueError, TypeError):
        return None


def _work(
    peer: socket.socket, begin: Begin, written: Written | None, foreign: Sequence[socket.socket], report: int
) -> None:
    for other in foreign:
        other.close()
    prctl.set_name("gantry-worker")
    waiting = _waiting_init(written)
    for start, length in written.worker if written is not None else ():
        syscalls.populate(start, length)
    packet = fdpass.receive(peer)
    if packet is not None:
        pid = waiting.pid if waiting is not None else 0
        tell = (lambda: _tell(report, pid)) if report >= 0 else None
        answer_calls(peer, *begin(*packet, waiting), tell)


def _waiting_init(written: Written | None) -> WaitingInit | None:
    """None on v2, where none suits, and when it cannot be made: the container's own attempt will say why."""
    with contextlib.suppress(OSError, CgroupError):
        if not layout.current().unified:
            return WaitingInit(memory=written.init if written is not None else (), sibling=True)
    return None


def _tell(report: int, init: int) -> None:
    with contextlib.suppress(OSError):
        ranges = [memory.written(), memory.written(init) if init else []]
        data = json.dumps(ranges, separators=(",", ":")).encode()
        while data:
            data = data[os.write(report, data) :]
    os.close(report)
