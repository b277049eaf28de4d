"""The zygote: a warm interpreter that shims are forked from.

Rule: everything a shim needs is imported here, once, before the first fork; there are never threads. It runs from a
sealed memfd copy of the interpreter, so a container that gets hold of ``/proc/<pid>/exe`` of a shim or of a runtime
process finds nothing it could write to (CVE-2019-5736). Wire: "Zygote" in docs/internals.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from oci import trace
from oci.version import __version__
from protos import fdpass
from shim import sealed
from shim.config import ShimConfig
from shim.rest import Template, encode

if TYPE_CHECKING:
    from shim.worker import Worker, Written

_KNOWN_ORPHANS = 4096
_WARM = (
    "runc_py.update",
    "runc_py.warm",
    "shim.commandline",
    "shim.handover",
    "shim.main",
    "shim.restore",
    "shim.worker",
    "traceback",
)
"""Modules whose import somebody would otherwise pay for in every shim."""


IDLE_SECONDS = 0.03
"""Without a request for so long the zygote forks a spare; under many requests it has other things to do."""


WORKER_SECONDS = 10.0
"""So long after it was forked a spare keeps a worker for its container's runtime: containers seldom come alone."""


class Spare(NamedTuple):
    """A process forked ahead of the request for it, and where it waits for that."""

    pid: int
    peer: socket.socket


class Zygote:
    """The server: forks shims, reaps orphans and remembers how they ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._peers: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._poll.register(listener.fileno(), select.EPOLLIN)
        self._statuses: OrderedDict[int, int] = OrderedDict()
        self._spare: Spare | None = None
        self._started = False
        self._written: Written | None = None
        self._report, self._told = -1, b""
        self._template: Template | None = None
        self._running = True

    def run(self) -> None:
        """Serve until ``shutdown``."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._poll.register(wake_read, select.EPOLLIN)
        self._wakeup = (wake_read, wake_write)
        self._template = Template(_resume, self._let_go)
        self._reap()
        while self._running:
            ready = self._poll.poll(-1 if self._spare is not None else IDLE_SECONDS)
            if not ready:
                self._spare = self._fork_spare()
            for descriptor, _ in ready:
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._report:
                    self._take_report()
                elif descriptor == wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                    self._reap()
                else:
                    self._serve(descriptor)
        if self._template is not None:
            self._template.close()
            os.waitpid(self._template.pid, 0)
        if self._spare is not None:
            self._spare.peer.close()
            os.waitpid(self._spare.pid, 0)

    def _reap(self) -> None:
        """Collect every dead child; the statuses of the last few thousand are kept for ``reaped``."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._spare is not None and pid == self._spare.pid:
                self._spare.peer.close()
                self._spare = None
            self._statuses[pid] = status
            if len(self._statuses) > _KNOWN_ORPHANS:
                self._statuses.popitem(last=False)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            peer, _ = self._listener.accept()
            peer.settimeout(5.0)
            self._peers[peer.fileno()] = peer
            self._poll.register(peer.fileno(), select.EPOLLIN)

    def _serve(self, descriptor: int) -> None:
        peer = self._peers[descriptor]
        try:
            packet = fdpass.receive(peer)
            if packet is not None:
                try:
                    if not _hung_up(peer):  # else asked by a supervisor that is dead: the next one has its own mind
                        fdpass.send(peer, self._answer(*packet))
                finally:
                    fdpass.close_all(packet[1])
                return
        except fdpass.PeerError as error:
            with contextlib.suppress(OSError):
                fdpass.send(peer, {"error": str(error)})
                return
        except OSError:
            pass  # the peer is gone: the same as its end of file
        self._poll.unregister(descriptor)
        del self._peers[descriptor]
        peer.close()

    def _answer(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        operation = request.get("op")
        if operation == "ping":
            return {"pid": os.getpid(), "version": __version__}
        if operation in ("start", "restore"):
            try:
                return self._start(request, restore=operation == "restore")
            except (OSError, KeyError, TypeError, ValueError) as error:
                return {"error": f"cannot {operation} a shim for {request.get('id')!r}: {error!r}"}
        if operation == "rest":
            return self._rest(request, descriptors)
        if operation == "reaped":
            self._reap()
            return {"status": self._statuses.get(request.get("pid", 0))}
        if operation == "shutdown":
            self._running = False
            return {}
        return {"error": f"bad request: no such operation {operation!r}"}

    def _start(self, request: dict[str, Any], *, restore: bool) -> dict[str, Any]:
        from shim import main as shim_main

        config = ShimConfig(
            namespace=str(request["namespace"]),
            container_id=str(request["id"]),
            bundle=str(request["bundle"]),
            address=str(request.get("address", "")),
            ttrpc_address=str(request.get("ttrpc_address", "")),
            keeper=str(request.get("keeper", "")),
            zygote=self._listener.getsockname(),
            socket=str(request["socket"]),
            debug=bool(request.get("debug", False)),
        )
        os.stat(config.bundle)  # one that was removed meanwhile gets neither shim nor socket
        listener = shim_main.listen(config.socket)
        pid = self._hand_over(config, listener, restore) or os.fork()
        if pid == 0:
            self._let_go()
            self._be_shim(config, listener, restore)
        listener.close()
        # A pid that is used again belongs to somebody else now.
        self._statuses.pop(pid, None)
        return {"pid": pid, "address": f"unix://{config.socket}"}

    def _hand_over(self, config: ShimConfig, listener: socket.socket, restore: bool) -> int:
        """Make the spare the shim; its pid, or 0 when there is none."""
        spare, self._spare = self._spare, None
        self._started = True
        if spare is None:
            return 0
        with spare.peer, contextlib.suppress(OSError):
            fdpass.send(spare.peer, {"config": config, "restore": restore}, [listener.fileno()])
            return spare.pid
        return 0

    def _fork_spare(self) -> Spare:
        """A process that waits to become a shim: its fork is then nobody's to wait for."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with_worker, report = self._started, -1
        if with_worker and self._written is None and self._report < 0:
            self._report, report = os.pipe2(os.O_CLOEXEC)
            self._poll.register(self._report, select.EPOLLIN)
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._let_go()
            self._wait_for_work(theirs, with_worker, report)
        theirs.close()
        if report >= 0:
            os.close(report)
        self._started = False
        return Spare(pid, ours)

    def _take_report(self) -> None:
        """What a worker tells of memory that is worth copying ahead; it has told all when it closes its end."""
        from shim.worker import parsed

        data = os.read(self._report, 1 << 20)
        self._told += data
        if not data:
            self._written, self._told = parsed(self._told), b""
            self._poll.unregister(self._report)
            os.close(self._report)
            self._report = -1

    def _rest(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Have a process take over from the shim that asks."""
        try:
            packet = encode(str(request["bundle"]), str(request["state"]))
            if self._template is not None:
                with contextlib.suppress(OSError):
                    return {"pid": self._template.fork(packet, descriptors)}
                self._template.close()
            self._template = Template(_resume, lambda: self._let_go(descriptors))
            return {"pid": self._template.fork(packet, descriptors)}
        except (OSError, KeyError, TypeError, ValueError) as error:
            return {"error": f"cannot take over from a shim: {error!r}"}

    def _let_go(self, descriptors: Sequence[int] = ()) -> None:
        """In a fork: close all that is the zygote's, and ``descriptors``."""
        fdpass.close_all(descriptors)
        signal.set_wakeup_fd(-1)
        os.setsid()
        if self._template is not None:
            self._template.close()
        if self._spare is not None:
            self._spare.peer.close()
        if self._report >= 0:
            os.close(self._report)
        for peer in self._peers.values():
            peer.close()
        self._listener.close()
        self._poll.close()
        for descriptor in self._wakeup:
            os.close(descriptor)

    def _wait_for_work(self, peer: socket.socket, with_worker: bool, report: int) -> NoReturn:
        """Be the spare: a shim when told so, and gone when the zygote is."""
        from shim import prctl, runtimes
        from shim.worker import Worker

        try:
            prctl.set_name("gantry-spare")
            ahead = Worker(runtimes.begin, self._written, [peer], report) if with_worker else None
            if report >= 0:
                os.close(report)
            with peer:
                if ahead is not None and not select.select([peer], [], [], WORKER_SECONDS)[0]:
                    _dismiss(ahead)
                    ahead = None
                packet = fdpass.receive(peer)
            if packet is not None:
                values, (listener,) = packet
                if values["restore"] and ahead is not None:
                    _dismiss(ahead)
                    ahead = None
                config = ShimConfig(*values["config"])
                self._be_shim(config, socket.socket(fileno=listener), values["restore"], ahead)
        finally:
            os._exit(0)

    @staticmethod
    def _be_shim(config: ShimConfig, listener: socket.socket, restore: bool, ahead: Worker | None = None) -> NoReturn:
        from shim import main as shim_main

        _end_as(lambda: shim_main.serve(config, listener, restore=restore, worker=ahead))


def _dismiss(ahead: Worker) -> None:
    """Let a worker go, and the init that waited with it."""
    ahead.dismiss()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, 0)


def _resume(state: bytes, descriptors: list[int]) -> NoReturn:
    from shim import main as shim_main

    _end_as(lambda: shim_main.resume(state, descriptors))


def _end_as(shim: Callable[[], int]) -> NoReturn:
    """Be ``shim`` to its end."""
    code = 1
    try:
        code = shim()
    except BaseException as error:
        from shim.loop import report

        report("the shim ended", error)
    finally:
        os._exit(code)


def _hung_up(peer: socket.socket) -> bool:
    poller = select.poll()
    poller.register(peer, 0)
    return bool(poller.poll(0))


def preload() -> None:
    """Import all that a shim and its runtime use, so that no shim imports anything after its fork."""
    for name in _WARM:
        importlib.import_module(name)


def _ensure_keeper(path: str) -> None:
    """Fork a keeper that listens on ``path``, unless one answers there; before the heavy imports, so it is tiny."""
    from shim import keeper

    try:
        listener = keeper.listen(path)
    except FileExistsError:
        return
    if os.fork() == 0:
        code = 1
        try:
            os.setsid()
            keeper.serve(listener)
            code = 0
        finally:
            os._exit(code)
    listener.close()


def _arguments() -> dict[str, str]:
    """``--socket`` and ``--keeper``; an unknown flag ends the process with a usage line."""
    arguments = sys.argv[1:]
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) % 2 or "--socket" not in options or set(options) - {"--socket", "--keeper"}:
        sys.stderr.write("usage: python -m shim.zygote --socket PATH [--keeper PATH]\n")
        sys.exit(2)
    return options


def main() -> int:
    """``python -m shim.zygote --socket PATH [--keeper PATH]``; with ``--keeper`` it also sees to a keeper there."""
    options = _arguments()
    sealed.execute("shim.zygote", sys.argv[1:])
    from shim import keeper, prctl

    try:
        if "--keeper" in options:
            _ensure_keeper(options["--keeper"])
        listener = keeper.listen(options["--socket"])
    except OSError as error:
        sys.stderr.write(f"zygote: cannot listen: {error}\n")
        return 1
    prctl.set_name("gantry-zygote")
    prctl.become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    preload()
    path = options["--socket"]
    from shim import rehearsal

    rehearsal.rehearse(os.path.dirname(path))
    if trace.directory:
        from shim import traced

        traced.follow(Zygote)
    gc.collect()
    gc.freeze()
    listener.setblocking(False)
    Zygote(listener).run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
