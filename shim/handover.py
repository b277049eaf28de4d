"""A shim with nothing to do hands over to a fresh fork of the zygote, and ends.

Rule: what a shim has done in its life is memory of its own; a fork that only waits has next to none. It holds all that
the shim held and polls (``shim.rest``); when something happens it is the container's shim, until there is nothing to do
again. Nothing is lost on the way: bytes stay in their pipes, connections stay open, and a process that ends meanwhile
is seen by its pidfd. Whichever of the two is killed, the supervisor finds no shim and has it replaced as ever.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from protos import fdpass
from protos.shim_messages import STATUS_PAUSED, STATUS_RUNNING
from shim import rest
from shim.bundle import ADDED, Bundle, ProcessRecord
from shim.container import Container
from shim.io import ProcessIO
from shim.loop import READ, report
from shim.process import Process
from shim.restore import taken_from
from shim.server import Server, Unanswered
from shim.service import TaskService
from shim.stdio import Uris

FIRST_SECONDS = 2.0
"""How long nothing must happen before a shim hands over for the first time."""

_LONGEST_SECONDS = 300.0
_WORTH_IT_SECONDS = 20.0
"""A rest that is shorter was not worth two hand-overs: the next one is waited for longer."""

_PEER_SECONDS = 5.0


class Frozen(NamedTuple):
    """A shim in the form that travels: a JSON object that names ``descriptors`` by their places."""

    state: dict[str, Any]
    descriptors: list[int]
    watched: list[tuple[int, int]]
    """Places in ``descriptors`` and the poll events for which to wake up."""


class _Luggage:
    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.watched: list[tuple[int, int]] = []

    def add(self, descriptor: int, events: int = 0) -> int:
        """The place of ``descriptor``; -1 for none."""
        if descriptor < 0:
            return -1
        if descriptor not in self.descriptors:
            self.descriptors.append(descriptor)
        place = self.descriptors.index(descriptor)
        if events:
            self.watched.append((place, events))
        return place


class Resting:
    """Watches over one shim: hands it over when nothing has happened for ``seconds``."""

    def __init__(self, service: TaskService, server: Server, seconds: float = FIRST_SECONDS) -> None:
        self._service, self._server, self._seconds = service, server, seconds
        service.loop.call_at_rest(seconds, self._rest)

    def _rest(self) -> None:
        frozen = freeze(self._service, self._server)
        if frozen is None:
            return
        frozen.state.update(seconds=self._seconds, since=time.monotonic())
        try:
            _hand_over(self._service.config.zygote, Bundle(self._service.config.bundle), frozen)
        except (OSError, fdpass.PeerError) as error:
            report(f"cannot hand over to a shim at rest: {error}: staying awake")
        else:
            os._exit(0)


def _hand_over(zygote: str, bundle: Bundle, frozen: Frozen) -> None:
    """Returns when the other one is in charge. Raises ``OSError`` or ``PeerError``; this shim goes on then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with ours:
        ours.settimeout(_PEER_SECONDS)
        with theirs, fdpass.connect(zygote, timeout=_PEER_SECONDS) as peer:
            answer, _ = fdpass.call(peer, {"op": "rest"}, [theirs.fileno()])
        payload = rest.encode(bundle.path, frozen.watched, json.dumps(frozen.state, separators=(",", ":")).encode())
        socket.send_fds(ours, [payload], frozen.descriptors)
        if ours.recv(len(rest.READY)) != rest.READY:
            raise ConnectionError("it ended")
        bundle.write_pid("shim.pid", answer["pid"])
        try:
            ours.send(rest.GO, socket.MSG_NOSIGNAL)
        except OSError:
            bundle.write_pid("shim.pid", os.getpid())
            raise


def freeze(service: TaskService, server: Server) -> Frozen | None:
    """All that another shim needs to go on; ``None`` while something is under way, or when it would not fit."""
    container = service.containers.get(service.config.container_id)
    if container is None or len(service.containers) > 1 or service.publisher.pending or not _quiet(container):
        return None
    connections = server.handed_over()
    if connections is None:
        return None
    luggage = _Luggage()
    held: dict[str, int] = {}
    for process in container.processes():
        if process.running and not _pack(process, luggage, held):
            return None
    state = {
        "config": service.config,
        "status": container.init.status,
        "listener": luggage.add(server.fileno(), READ),
        "connections": [(luggage.add(number, READ), calls) for number, calls in connections],
        "held": held,
        "keeper": luggage.add(container.parking.handed_over(), READ),
        "oom": None,
    }
    if container.oom is not None:
        watched, counter, seen = container.oom.handed_over()
        state["oom"] = (luggage.add(watched, container.oom.events), luggage.add(counter), seen)
    fits = len(luggage.descriptors) <= fdpass.MAX_DESCRIPTORS and len(json.dumps(state)) < rest.LARGEST_STATE
    return Frozen(state, luggage.descriptors, luggage.watched) if fits else None


def _quiet(container: Container) -> bool:
    return container.init.status in (STATUS_RUNNING, STATUS_PAUSED) and container.init.running


def _pack(process: Process, luggage: _Luggage, held: dict[str, int]) -> bool:
    """Add what belongs to a running process; whether it can be handed over now."""
    handed = process.io.handed_over() if process.io is not None else None
    if process.io is None or handed is None or process.pidfd < 0:
        return False
    prefix = f"exec.{process.exec_id}/" if process.exec_id else ""
    watched = set(process.io.watched())
    for name, descriptor in handed.items():
        held[prefix + name] = luggage.add(descriptor, READ if descriptor in watched else 0)
    held[f"{prefix}pidfd"] = luggage.add(process.pidfd, READ)
    return True


def take_over(service: TaskService, server: Server, state: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be what was frozen: the container with its processes, then the connections that wait for it."""
    config = service.config
    bundle = Bundle(config.bundle)
    options = bundle.read_options()
    assert options is not None, "a shim with a container has written what its Create asked for"
    container = service.new_container(config.container_id, config.bundle, Uris(*options["uris"]), options["options"])
    service.containers[config.container_id] = container
    held = {name: descriptors[place] for name, place in state["held"].items()}
    for record in bundle.read_processes():
        _take_over_process(service, container, record, held)
    container.init.status = state["status"]
    if state["keeper"] >= 0:
        container.parking.take_over(descriptors[state["keeper"]])
    if state["oom"] is not None:
        watched, counter, seen = state["oom"]
        container.watch_oom((_at(descriptors, watched), _at(descriptors, counter), seen))
    for place, calls in state["connections"]:
        server.take_over(descriptors[place], [Unanswered(*call) for call in calls])
    slept = time.monotonic() - state["since"]
    is_short = slept < _WORTH_IT_SECONDS
    Resting(service, server, min(4 * state["seconds"], _LONGEST_SECONDS) if is_short else FIRST_SECONDS)


def _at(descriptors: Sequence[int], place: int) -> int:
    return descriptors[place] if place >= 0 else -1


def _take_over_process(service: TaskService, container: Container, record: ProcessRecord, held: dict[str, int]) -> None:
    process = container.init
    if record.exec_id:
        uris = Uris(record.stdin, record.stdout, record.stderr, record.terminal)
        process = container.execs[record.exec_id] = Process(record.exec_id, uris, record.spec)
    process.pid, process.phase = record.pid, record.phase
    mine = taken_from(held, record.exec_id)
    exit_record = container.bundle.read_exit(record.exec_id)
    if exit_record is not None:
        process.ended(exit_record)
    elif record.phase != ADDED:
        process.pidfd = mine.pop("pidfd")
        process.status = STATUS_RUNNING
        process.io = ProcessIO.restore(service.loop, process.uris, mine)
        container.hook_stdin(process)
        container.watch_orphan(process)
