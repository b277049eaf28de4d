"""A shim with nothing to do hands over to a fresh fork of the zygote, and ends.

Rule: what a shim has done in its life is memory of its own; a fork that only waits has next to none. It holds all that
the shim held and polls (``shim.rest``); when something happens it is the container's shim, until there is nothing to do
again. Nothing is lost on the way: bytes stay in their pipes, connections stay open, and a process that ends meanwhile
is seen by its pidfd. Whichever of the two is killed, the supervisor finds no shim and has it replaced as ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from protos import fdpass
from protos.shim_messages import STATUS_PAUSED, STATUS_RUNNING
from shim.bundle import ADDED, Bundle, ProcessRecord, give_up
from shim.container import Container
from shim.io import ProcessIO
from shim.loop import READ, report
from shim.process import Process
from shim.rest import GO
from shim.restore import taken_from
from shim.server import Server, Unanswered
from shim.service import TaskService
from shim.stdio import Uris

_VARIABLE, _DEFAULT_SECONDS = "GANTRY_SHIM_REST", 10.0


def first_seconds(value: str) -> float:
    """The seconds that ``value`` says, or ten when it says nothing that makes sense: containers matter more."""
    try:
        seconds = float(value or _DEFAULT_SECONDS)
    except ValueError:
        seconds = -1.0
    if 0 <= seconds < float("inf"):
        return seconds
    report(f"{_VARIABLE}={value!r} is no number of seconds (0: shims never rest): {_DEFAULT_SECONDS:g} is used")
    return _DEFAULT_SECONDS


FIRST_SECONDS = first_seconds(os.environ.get(_VARIABLE, ""))
"""How long nothing must happen before a shim hands over for the first time; it never does when this is 0."""

_LONGEST_SECONDS = 300.0
_WORTH_IT_SECONDS = 15.0
"""A rest that is shorter was not worth two hand-overs: the next one is waited for longer."""

_PEER_SECONDS = 5.0
_LARGEST_STATE = fdpass.MAX_PACKET // 2
"""JSON in JSON: its quotes need a backslash each."""


class Frozen(NamedTuple):
    """A shim in the form that travels: a JSON object that names ``descriptors`` by their places."""

    container: Container
    state: dict[str, Any]
    descriptors: list[int]


class _Luggage:
    def __init__(self, *descriptors: int) -> None:
        self.descriptors = list(descriptors)

    def add(self, descriptor: int) -> int:
        """The place of ``descriptor``; -1 for none."""
        if descriptor < 0:
            return -1
        if descriptor not in self.descriptors:
            self.descriptors.append(descriptor)
        return self.descriptors.index(descriptor)


class Resting:
    """Watches over one shim: hands it over when nothing has happened for ``seconds``."""

    def __init__(self, service: TaskService, server: Server, seconds: float) -> None:
        self._service, self._server, self._seconds = service, server, seconds
        if seconds > 0:
            service.loop.call_at_rest(seconds, self._rest)

    def _rest(self) -> None:
        frozen = freeze(self._service, self._server)
        if frozen is None:
            return
        frozen.state.update(seconds=self._seconds, since=time.monotonic())
        children = [process.pidfd for process in frozen.container.processes() if process.running and process.is_child]
        for pidfd in children:  # this shim hears of them by signals; the epoll set is the other's, too
            self._service.loop.watch(pidfd, READ, _ignored)
        try:
            _hand_over(self._service.config.zygote, Bundle(self._service.config.bundle), frozen)
        except (OSError, fdpass.PeerError) as error:
            report(f"cannot hand over to a shim at rest: {error}: staying awake")
            for pidfd in children:
                self._service.loop.unwatch(pidfd)
        else:
            os._exit(0)


def _ignored(_events: int) -> None:
    """Nothing is called between the watch and its end."""


def _hand_over(zygote: str, bundle: Bundle, frozen: Frozen) -> None:
    """Returns when the other one is in charge. Raises ``OSError`` or ``PeerError``; this shim goes on then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with ours:
        state = json.dumps(frozen.state, separators=(",", ":"))
        request = {"op": "rest", "bundle": bundle.path, "state": state}
        with theirs, fdpass.connect(zygote, timeout=_PEER_SECONDS) as peer:
            answer, _ = fdpass.call(peer, request, [theirs.fileno(), *frozen.descriptors])
        bundle.write_pid("shim.pid", answer["pid"])
        give_up(bundle.path)
        with contextlib.suppress(OSError):  # if it is dead, the supervisor sees that nobody is there any more
            ours.send(GO, socket.MSG_NOSIGNAL)


def freeze(service: TaskService, server: Server) -> Frozen | None:
    """All that another shim needs to go on; ``None`` while something is under way, or when it would not fit."""
    container = service.containers.get(service.config.container_id)
    if container is None or len(service.containers) > 1 or service.has_sandbox:
        return None
    if service.publisher.pending or not _quiet(container):
        return None
    connections = server.handed_over()
    if connections is None:
        return None
    luggage = _Luggage(service.loop.fileno())
    held: dict[str, int] = {}
    for process in container.processes():
        if process.running and not _pack(process, luggage, held):
            return None
        if not process.running and process.io is not None and process.io.serves_attach:
            return None  # what is left of its output can still be asked for, until it is deleted
    state = {
        "config": service.config,
        "status": container.init.status,
        "listener": luggage.add(server.fileno()),
        "connections": [(luggage.add(number), calls) for number, calls in connections],
        "held": held,
        "keeper": luggage.add(container.parking.handed_over()),
        "oom": None,
    }
    if container.oom is not None:
        watched, counter, seen = container.oom.handed_over()
        state["oom"] = (luggage.add(watched), luggage.add(counter), seen)
    fits = len(luggage.descriptors) < fdpass.MAX_DESCRIPTORS and len(json.dumps(state)) < _LARGEST_STATE
    return Frozen(container, state, luggage.descriptors) if fits else None


def _quiet(container: Container) -> bool:
    return container.init.status in (STATUS_RUNNING, STATUS_PAUSED) and container.init.running


def _pack(process: Process, luggage: _Luggage, held: dict[str, int]) -> bool:
    """Add what belongs to a running process; whether it can be handed over now."""
    handed = process.io.handed_over() if process.io is not None else None
    if process.io is None or handed is None or process.pidfd < 0:
        return False
    prefix = f"exec.{process.exec_id}/" if process.exec_id else ""
    for name, descriptor in handed.items():
        held[prefix + name] = luggage.add(descriptor)
    held[f"{prefix}pidfd"] = luggage.add(process.pidfd)
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
