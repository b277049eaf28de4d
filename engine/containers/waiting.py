"""``POST /containers/{id}/wait``: the exit status, once the condition holds.

Rule: the waiter is in place before the answer's headers go out, so a client that then starts the container misses
nothing.
"""

from __future__ import annotations

import asyncio

from engine.containers.machine import ExitStatus, Machine
from oci.errors import InvalidArgument

CONDITIONS = ("", "not-running", "next-exit", "removed")


def waiter(machine: Machine, condition: str) -> asyncio.Future[ExitStatus]:
    """Resolves when ``condition`` holds; raises ``InvalidArgument`` for another word."""
    if condition not in CONDITIONS:
        raise InvalidArgument(f'invalid condition: "{condition}"')
    if condition == "removed":
        return machine.removal()
    if condition != "next-exit" and not machine.doc.state.running:
        done: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        done.set_result(ExitStatus(machine.doc.state.exit_code))
        return done
    return machine.next_exit()
