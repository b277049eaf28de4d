"""A container's life played through in the zygote, with nothing in it.

Rule: it is done for its traces only. What the interpreter writes down when code first runs (specialised instructions,
hashes, method caches, patterns) is then shared by all shims instead of being half a megabyte of each. No process is
started, signalled or waited for, and a rehearsal that fails costs memory and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence

from protos import fdpass, ttrpc
from protos.shim_messages import TASK_METHODS
from protos.wire import Values
from runc_py.runtime import Launched
from shim import main, runtimes
from shim.bundle import Bundle, claim
from shim.config import ShimConfig
from shim.container import Container
from shim.exits import Children
from shim.loop import Loop
from shim.parking import Parking
from shim.process import Process
from shim.server import Server
from shim.service import TaskService
from shim.stdio import Uris

_ROUNDS = 12
"""CPython 3.11 specialises code after eight calls."""

_ID = "rehearsal"
_SERVICE = "containerd.task.v2.Task"


def rehearse(directory: str) -> None:
    """Play a few lives in a temporary directory below ``directory``."""
    scratch = f"{directory}/.r{os.getpid()}"  # without tempfile: it brings random, which every fork would seed anew
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        os.mkdir(scratch, 0o700)
        for number in range(_ROUNDS):
            os.mkdir(f"{scratch}/{number}")
            _Rehearsal(f"{scratch}/{number}").play()
    except Exception as error:
        from shim.loop import report

        report("the rehearsal failed", error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Runtime(runtimes.InProcess):
    """Ours, with containers that are this process, made without a fork."""

    def create(self, _request: runtimes.CreateRequest) -> Launched:
        return Launched(os.getpid(), os.pidfd_open(os.getpid()), None)

    def start(self, _container_id: str, *, resume: bool = False) -> None:
        """Nothing runs."""


class _Service(TaskService):
    def new_container(self, container_id: str, bundle_path: str, uris: Uris, options: Values) -> Container:
        scratch = os.path.dirname(self.config.socket)
        root = runtimes.root_of(options, self.config.address, self.config.namespace)
        runtimes.runtime_for(options, root, bundle_path, scratch, Children())
        return Container(
            container_id,
            Bundle(bundle_path),
            _Runtime(scratch, "cgroupfs", bundle_path),
            Process("", uris),
            loop=self.loop,
            parking=Parking(self.loop, "", container_id),
            publisher=self.publisher,
            zygote="",
        )


class _Rehearsal:
    """One life."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._loop = Loop()
        self._stream = 1

    def play(self) -> None:
        """Create, State, Start over a real connection, with events to a containerd that takes them."""
        where = self._directory
        with contextlib.ExitStack() as stack:
            events = stack.enter_context(main.listen(f"{where}/e"))
            listener = stack.enter_context(main.listen(f"{where}/s"))
            config = ShimConfig("ns", _ID, where, f"{where}/c", f"{where}/e", "", "", f"{where}/s")
            stack.enter_context(_claimed(where))
            service = _Service(self._loop, config)
            stack.callback(self._loop.watch_children(_nobody))
            main.write_files(config)
            server = Server(self._loop, listener, service)
            stack.callback(server.close)
            stack.callback(_close, service)
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(f"{where}/s")
            self._turn()
            self._converse(client, where)
            peer = stack.enter_context(events.accept()[0])
            for stream in (1, 3):
                peer.recv(1 << 16)
                peer.send(ttrpc.encode_response(stream, b""))
                self._turn()
            _pass_descriptors(peer)

    def _converse(self, client: socket.socket, where: str) -> None:
        log = f"rawlog://{where}/log?attach={where}/a"
        mount = {"type": "overlay", "source": "overlay", "options": ["workdir=/w", "upperdir=/u", "lowerdir=/l"]}
        self._call(client, "Create", {"id": _ID, "bundle": where, "stdout": log, "stderr": log, "rootfs": [mount]})
        self._call(client, "State", {"id": _ID})
        self._call(client, "Wait", {"id": _ID})
        self._call(client, "Start", {"id": _ID})
        self._call(client, "Connect", {"id": _ID})

    def _call(self, client: socket.socket, method: str, values: Values) -> None:
        payload = TASK_METHODS[method].request.encode(values)
        client.send(ttrpc.encode_request(self._stream, _SERVICE, method, payload, {}))
        self._stream += 2
        self._turn()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.recv(1 << 16)

    def _turn(self) -> None:
        self._loop.call_later(0.0, self._loop.stop)
        self._loop.run()


@contextlib.contextmanager
def _claimed(bundle: str) -> Iterator[None]:
    descriptor = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(descriptor)
    claim(bundle)  # a shim holds its lock for life: it has got the lowest free descriptor, which is that one
    try:
        yield
    finally:
        os.close(descriptor)


def _nobody() -> None:
    """Has no children."""


def _close(service: TaskService) -> None:
    for container in service.containers.values():
        for process in container.processes():
            process.close()
        container.stop_watching_oom()
    service.publisher.close()


def _pass_descriptors(peer: socket.socket) -> Sequence[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fdpass.send(ours, {"op": "put", "key": "ns/id", "names": ["pidfd"]}, [peer.fileno()])
        received = fdpass.receive(theirs)
        if received is not None:
            fdpass.close_all(received[1])
    return ()
