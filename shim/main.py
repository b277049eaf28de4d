"""The shim process, and the command line ``containerd-shim-py-v2`` by which containerd starts one.

Rule: forked from the zygote or started cold, the process is the same from ``serve`` on. Commands and their output
follow containerd's shim protocol: ``start`` prints an address, ``delete`` a serialized DeleteResponse.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shim import prctl
from shim.bundle import Bundle, claim, write_atomically
from shim.config import ShimConfig
from shim.loop import Loop, report
from shim.server import Server
from shim.service import TaskService

if TYPE_CHECKING:
    from shim.worker import Worker

__all__ = ["ShimConfig", "listen", "main", "serve", "write_files"]

_FLUSH_SECONDS = 3.0
_POLL_SECONDS = 0.005


def listen(path: str) -> socket.socket:
    """The shim's listening socket (mode 0600); whatever was at ``path`` belonged to a shim that is gone."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(32)
    return listener


def serve(config: ShimConfig, listener: socket.socket, *, restore: bool = False, worker: Worker | None = None) -> int:
    """Be the shim of ``config`` on ``listener`` until shut down; the exit code. ``worker`` is for its container."""
    _become_shim(config)
    claim(config.bundle)
    loop = Loop()
    service = TaskService(loop, config, worker)
    loop.watch_children(service.reap)
    write_files(config)
    if restore:
        from shim.restore import restore as take_over

        take_over(service)
        service.reap()
    server = Server(loop, listener, service)
    if config.zygote:
        from shim.handover import FIRST_SECONDS, Resting

        Resting(service, server, FIRST_SECONDS)
    return _run(loop, server, service)


def resume(state: bytes, descriptors: Sequence[int]) -> int:
    """Be the shim that handed over ``state`` and ``descriptors`` (``shim.handover``); the exit code.

    Before those that the state names there is the link to it; the first of them, its epoll set, is closed already.
    """
    from shim.handover import take_over

    link, *descriptors = descriptors
    os.close(link)
    values = json.loads(state)
    config = ShimConfig(*values["config"])
    _become_shim(config)
    loop = Loop()
    service = TaskService(loop, config)
    loop.watch_children(service.reap)
    server = Server(loop, socket.socket(fileno=descriptors[values["listener"]]), service)
    take_over(service, server, values, descriptors)
    return _run(loop, server, service)


def _become_shim(config: ShimConfig) -> None:
    gc.disable()  # a few small objects per call, no cycles worth a collection that would unshare the zygote's pages
    prctl.set_name("gantry-shim")
    prctl.become_subreaper()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _open_log(config.bundle)
    os.chdir("/")


def _run(loop: Loop, server: Server, service: TaskService) -> int:
    service.on_shutdown = lambda: loop.call_later(0, _Ending(loop, server, service).step)
    loop.run()
    server.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(service.config.socket)
    return 0


class _Ending:
    """Shutdown: leave when every answer and event is out, or after three seconds."""

    def __init__(self, loop: Loop, server: Server, service: TaskService) -> None:
        self._loop, self._server, self._service = loop, server, service
        self._left = int(_FLUSH_SECONDS / _POLL_SECONDS)

    def step(self) -> None:
        """Look whether all is out."""
        self._left -= 1
        if (self._server.flush() and not self._service.publisher.pending) or self._left <= 0:
            self._loop.stop()
        else:
            self._loop.call_later(_POLL_SECONDS, self.step)


def write_files(config: ShimConfig) -> None:
    """Say in the bundle who its shim is and where it listens."""
    Bundle(config.bundle).write_pid("shim.pid", os.getpid())
    write_atomically(f"{config.bundle}/address", f"unix://{config.socket}".encode())


def _open_log(bundle: str) -> None:
    """Standard input and output become /dev/null, standard error containerd's ``log`` FIFO or ``shim.log``."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    log = -1
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.stat(f"{bundle}/log").st_mode):
            log = os.open(f"{bundle}/log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    if log < 0:
        log = os.open(f"{bundle}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for source, number in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, number)
    os.close(null)
    os.close(log)


def main() -> int:
    """``containerd-shim-py-v2``."""
    from shim import commands

    try:
        return commands.run(sys.argv[1:])
    except Exception as error:
        report(f"containerd-shim-py-v2: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
