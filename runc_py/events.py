"""What ``events`` tells: usage at intervals, and when the kernel killed for want of memory.

Rule: nothing is kept between two looks but a count; the end of the container's init ends the stream.
"""

from __future__ import annotations

import select
import time

from runc_py import cgroups, state
from runc_py.errors import InvalidSpec, InvalidState
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from runc_py.runtime import Runtime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LOOK_SECONDS = 0.2


def parse_duration(text: str) -> float:
    """Seconds of ``500ms``, ``5s``, ``1m`` or ``1h``."""
    for unit, factor in _UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isascii() and number.replace(".", "", 1).isdigit():
            if float(number) > 0:
                return float(number) * factor
            break
    raise InvalidSpec(f'--interval "{text}": must be a duration greater than 0, such as 5s')


def watch(runtime: Runtime, container_id: str, interval: float) -> Iterator[tuple[str, Any]]:
    """("stats", usage) at once and every ``interval`` seconds, ("oom", None) for kills, until the container ends."""
    container = state.load(runtime.root, container_id)
    if container.status() == "stopped":
        raise InvalidState(f"container with id {container_id} is not running")
    manager = cgroups.load(container.cgroup)
    pidfd = os.pidfd_open(container.pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        kills, next_stats = manager.oom_kills(), time.monotonic()
        over = False
        while not over:
            seen = manager.oom_kills()
            for _ in range(seen - kills):
                yield "oom", None
            kills = max(kills, seen)
            if time.monotonic() >= next_stats:
                yield "stats", manager.stats()
                next_stats += interval
            wait = min(_LOOK_SECONDS, max(0.0, next_stats - time.monotonic()))
            over = bool(poller.poll(wait * 1000))
    finally:
        os.close(pidfd)
