"""The keeper: a process that holds descriptors for shims and does nothing else.

Rule: it never looks into what it holds and writes nothing to disk, so there is nothing that could make it fail. A
shim parks copies of a container's pidfd, pipe ends and pty here; when the shim is killed, its replacement takes them
back and the container notices nothing. Wire: "Keeper" in docs/internals.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

from oci.version import __version__
from protos import fdpass
from shim import prctl

_ANSWER_LIMIT = fdpass.MAX_DESCRIPTORS


class Store:
    """Descriptors by key and name. It owns what it holds."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, int]] = {}

    def put(self, key: str, names: list[str], descriptors: list[int]) -> None:
        """Keep ``descriptors`` under ``names``; those held before under the same names are closed."""
        if len(names) != len(descriptors):
            raise ValueError(f"{len(names)} names for {len(descriptors)} descriptors")
        held = self._keys.setdefault(key, {})
        replaced = [held[name] for name in names if name in held]
        held.update(zip(names, descriptors, strict=True))
        fdpass.close_all(replaced)

    def get(self, key: str, skip: int) -> tuple[list[str], list[int], bool]:
        """At most 32 names and descriptors after the first ``skip``, and whether there are more."""
        held = list(self._keys.get(key, {}).items())
        page = held[skip : skip + _ANSWER_LIMIT]
        return [name for name, _ in page], [fd for _, fd in page], len(held) > skip + _ANSWER_LIMIT

    def drop(self, key: str, names: list[str] | None) -> None:
        """Close everything of ``key``, or only ``names``. What is not there does not matter."""
        held = self._keys.get(key, {})
        for name in list(held) if names is None else names:
            descriptor = held.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)
        if not held:
            self._keys.pop(key, None)

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self._keys)


class Keeper:
    """The server around a ``Store``."""

    def __init__(self, listener: socket.socket) -> None:
        self.store = Store()
        self._listener = listener
        self._peers: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._poll.register(listener.fileno(), select.EPOLLIN)
        self._running = True

    def run(self) -> None:
        """Serve until ``shutdown``."""
        while self._running:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listener.fileno():
                    self._accept()
                else:
                    self._serve(descriptor)

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
                self._answer(peer, *packet)
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

    def _answer(self, peer: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        try:
            answer, attached = self._handle(request, descriptors)
        except (KeyError, TypeError, ValueError) as error:
            fdpass.close_all(descriptors)
            answer, attached = {"error": f"bad request {request.get('op')!r}: {error}"}, []
        fdpass.send(peer, answer, attached)

    def _handle(self, request: dict[str, Any], descriptors: list[int]) -> tuple[dict[str, Any], list[int]]:
        operation = request["op"]
        if operation == "put":
            self.store.put(str(request["key"]), [str(name) for name in request["names"]], descriptors)
            return {}, []
        fdpass.close_all(descriptors)
        if operation == "get":
            names, held, more = self.store.get(str(request["key"]), int(request.get("skip", 0)))
            return {"names": names, "more": more}, held
        if operation == "drop":
            self.store.drop(str(request["key"]), request.get("names"))
            return {}, []
        if operation == "list":
            return {"keys": self.store.keys()}, []
        if operation == "ping":
            return {"pid": os.getpid(), "version": __version__}, []
        if operation == "shutdown":
            self._running = False
            return {}, []
        raise ValueError("no such operation")


def listen(path: str) -> socket.socket:
    """A listening seqpacket socket at ``path`` (mode 0600) in place of a dead one.

    Raises ``FileExistsError`` when somebody answers there. The directory is locked meanwhile: of two that find a dead
    socket at the same time, one replaces it and the other finds that one.
    """
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        return _replace(path)
    finally:
        os.close(directory)


def _replace(path: str) -> socket.socket:
    try:
        fdpass.connect(path, timeout=1.0).close()
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)
    else:
        raise FileExistsError(f"another process serves {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def serve(listener: socket.socket) -> None:
    """Be the keeper on ``listener`` until told to shut down."""
    prctl.set_name("gantry-keeper")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    path = listener.getsockname()
    listener.setblocking(False)
    Keeper(listener).run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def main() -> int:
    """``python -m shim.keeper --socket PATH``."""
    if len(sys.argv) != 3 or sys.argv[1] != "--socket":
        sys.stderr.write("usage: python -m shim.keeper --socket PATH\n")
        return 2
    try:
        listener = listen(sys.argv[2])
    except OSError as error:
        sys.stderr.write(f"keeper: cannot listen on {sys.argv[2]}: {error}\n")
        return 1
    serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
