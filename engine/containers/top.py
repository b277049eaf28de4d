"""``docker top``: the host's ``ps``, cut down to the processes of a container.

Rule: which processes belong to the container is the supervisor's word, never ``ps``'s.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from engine.backend import translated
from engine.containers.registry import Registry
from oci.errors import FailedPrecondition, Internal, InvalidArgument
from protos.containerd import tasks_pb2

DEFAULT_ARGUMENTS = "-ef"
_PID_HEADER = re.compile(r"(?:^|[\s,])pid=", re.IGNORECASE)


class Top:
    """Lists processes of containers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def list(self, reference: str, arguments: str) -> dict[str, Any]:
        """``Titles`` and ``Processes`` for ``ps`` arguments. Raises ``FailedPrecondition`` unless it runs."""
        if _PID_HEADER.search(arguments):
            raise InvalidArgument('specifying "PID=..." is not allowed', hint="leave the pid column's name as it is")
        machine = self._registry.find(reference)
        if machine.doc.state.status == "restarting":
            raise FailedPrecondition(f"Container {machine.id} is restarting, wait until the container is running")
        if not machine.doc.state.alive:
            raise FailedPrecondition(f"container {machine.id} is not running")
        with translated():
            answer = await self._registry.backend.tasks.ListPids(tasks_pb2.ListPidsRequest(container_id=machine.id))
        pids = {int(process.pid) for process in answer.processes}
        words = (arguments or DEFAULT_ARGUMENTS).split()
        selected = ["-q", ",".join(map(str, sorted(pids)))] if pids else []
        status, output, error = await run_ps([*words, *selected])
        if status:
            # Some arguments do not go with -q; then everything is listed and filtered here.
            status, output, error = await run_ps(words)
        if status:
            raise Internal(f"error running ps: {error.strip() or f'exit status {status}'}")
        document = parse_ps(output, pids)
        self._registry.publish(machine, "top")
        return document


async def run_ps(arguments: list[str]) -> tuple[int, str, str]:
    """(status, stdout, stderr) of the host's ``ps``."""
    try:
        process = await asyncio.create_subprocess_exec(
            "ps", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise Internal("error running ps: it is not installed on this host", hint="install procps") from None
    output, error = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace"), error.decode(errors="replace")


def parse_ps(output: str, pids: set[int]) -> dict[str, Any]:
    """The rows of ``output`` whose PID is one of ``pids``; the last column takes the rest of its line."""
    lines = [line for line in output.split("\n") if line]
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise Internal("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    belongs = False
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) <= column:
            continue
        if fields[column] != "-":
            # Lines of threads have a dash there and belong to the process before them.
            if not fields[column].isdecimal():
                raise Internal(f'Unexpected pid "{fields[column]}"')
            belongs = int(fields[column]) in pids
        if belongs:
            rows.append([*fields[:-1], " ".join(fields[-1].split(" ")).rstrip()])
    return {"Processes": rows, "Titles": titles}
