"""The engine's side of the DNS server: starts it, adopts it, tells it of containers, starts it again.

Rule: a record is in its file before the server is told, so whichever server comes next knows it. The server is in a
session of its own and does not end with the engine; one of another version is replaced. It runs from the first
user-defined network on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

import structlog

from engine.network.dns.control import PACKET, SUFFIX, VERSION, record_path, socket_path
from oci.errors import Internal, Unavailable

log = structlog.get_logger()

START_SECONDS = 20.0
ANSWER_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL = 0.005
RESTART_PAUSE = 0.05


class NameServer:
    """One DNS server, whose records and socket are in ``directory``."""

    def __init__(self, directory: str) -> None:
        """Touches nothing before the first call."""
        self.directory = directory
        self._connection: _Connection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def restore(self, records: Iterable[dict[str, Any]], *, wanted: bool) -> None:
        """At the engine's start: exactly ``records``; a server runs if there are any or one is ``wanted``."""
        keep = {str(record["id"]): record for record in records}
        for container_id in self._stored():
            if container_id not in keep:
                self._unlink(container_id)
        for record in keep.values():
            self._write(record)
        if keep or os.path.exists(socket_path(self.directory)):
            connection = await self._ensure()
            await connection.ask({"op": "sync"})
        elif wanted:
            self.prepare()

    def prepare(self) -> None:
        """Have a server soon, without waiting."""
        self._background(self._prepare())

    async def _prepare(self) -> None:
        try:
            await self._ensure()
        except (OSError, Unavailable) as error:
            log.warning("the DNS server of containers does not start", error=str(error))

    async def put(self, record: dict[str, Any]) -> None:
        """Make the server answer a container's questions as ``record`` says. Raises ``Internal``, ``Unavailable``."""
        self._write(record)
        await self._tell({"op": "put", "id": record["id"]})

    def put_soon(self, record: dict[str, Any]) -> None:
        """``put`` without waiting and without failing, for what a container can start without."""
        self._write(record)
        self._background(self._put_soon(str(record["id"])))

    async def _put_soon(self, container_id: str) -> None:
        try:
            await self._tell({"op": "put", "id": container_id})
        except (OSError, Unavailable, Internal) as error:
            log.warning("published ports do not answer by IPv6", container=container_id, error=str(error))

    async def drop(self, container_id: str) -> None:
        """Make the server let go of a container. Idempotent; nothing to do where none was put."""
        if self._unlink(container_id):
            with contextlib.suppress(Unavailable, Internal):
                await self._tell({"op": "drop", "id": container_id})

    async def statistics(self) -> dict[str, Any]:
        """The server's counters."""
        return await (await self._ensure()).ask({"op": "statistics"})

    async def stop(self) -> None:
        """End the server and remove everything of it."""
        self._closed = True
        # One that is being started is waited for: it could not be told to end before it listens.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._lock:
            with contextlib.suppress(OSError, Unavailable, TimeoutError):
                connection = self._connection or await _Connection.open(self.directory, self._lost)
                await connection.ask({"op": "shutdown"})
                await connection.gone()
            self._connection = None
        if self._child is not None:
            await asyncio.to_thread(_wait_or_kill, self._child)
            self._child = None
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                os.unlink(f"{self.directory}/{name}")
            os.rmdir(self.directory)
        self._closed = False

    def close(self) -> None:
        """The engine ends; the server goes on."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Records

    def _stored(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [n.removesuffix(SUFFIX) for n in os.listdir(self.directory) if n.endswith(SUFFIX)]
        return []

    def _write(self, record: dict[str, Any]) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        path = record_path(self.directory, record["id"])
        with open(f"{path}.new", "wb") as file:
            file.write(json.dumps(record).encode())
        os.replace(f"{path}.new", path)

    def _unlink(self, container_id: str) -> bool:
        try:
            os.unlink(record_path(self.directory, container_id))
        except FileNotFoundError:
            return False
        return True

    # The server

    async def _tell(self, request: dict[str, Any]) -> None:
        """Ask once more when the server dies meanwhile: the next one has read the files already."""
        try:
            answer = await (await self._ensure()).ask(request)
        except (OSError, Unavailable):
            answer = await (await self._ensure()).ask(request)
        if "error" in answer:
            raise Internal(f"the DNS server cannot serve container {request['id']}: {answer['error']}")

    async def _ensure(self) -> _Connection:
        async with self._lock:
            if self._connection is None:
                self._connection = await self._adopt() or await self._start()
            return self._connection

    async def _adopt(self) -> _Connection | None:
        """A server that runs already, if it is of this version; one of another is ended."""
        try:
            connection = await _Connection.open(self.directory, self._lost)
        except OSError:
            return None
        with contextlib.suppress(Unavailable):
            if (await connection.ask({"op": "ping"})).get("version") == VERSION:
                return connection
            await connection.ask({"op": "shutdown"})
            await connection.gone()
        return None

    async def _start(self) -> _Connection:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        # What is left of a server that was killed would be taken for the new one's.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path(self.directory))
        command = [sys.executable, "-m", "engine.network.dns.main", self.directory]
        self._child = await asyncio.to_thread(_spawn, command, f"{self.directory}/log")
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                return await _Connection.open(self.directory, self._lost)
            if self._child.poll() is not None or asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"the DNS server of containers does not start (status {self._child.returncode})",
                    hint=f"its log is {self.directory}/log",
                )
            await asyncio.sleep(POLL)

    def _lost(self, connection: _Connection) -> None:
        """The server is gone: have another one at once, if anybody needs it."""
        if self._child is not None:
            self._child.poll()
        if connection is not self._connection:
            return
        self._connection = None
        if not self._closed:
            log.warning("the DNS server of containers is gone, starting it again")
            self._background(self._again())

    async def _again(self) -> None:
        await asyncio.sleep(RESTART_PAUSE)
        await self._prepare()

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _spawn(command: list[str], log_path: str) -> subprocess.Popen[bytes]:
    with open(log_path, "ab") as sink:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True, cwd="/"
        )


def _wait_or_kill(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class _Connection:
    """A connection to the server; answers come in the order of the requests."""

    def __init__(self, sock: socket.socket, lost: Any) -> None:
        self._socket = sock
        self._lost = lost
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    @classmethod
    async def open(cls, directory: str, lost: Any) -> _Connection:
        """Connect; raises ``OSError`` when nobody listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, socket_path(directory))
        except BaseException:
            sock.close()
            raise
        return cls(sock, lost)

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; raises ``Unavailable`` when the server goes away before."""
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        if self._socket.fileno() < 0:
            raise Unavailable("the DNS server of containers is gone")
        self._waiting.append(answer)
        try:
            self._socket.send(json.dumps(request).encode())
        except OSError as error:
            self._waiting.remove(answer)
            self._end()
            raise Unavailable(f"the DNS server of containers does not listen: {error.strerror}") from error
        try:
            return await asyncio.wait_for(asyncio.shield(answer), ANSWER_SECONDS)
        except TimeoutError:
            raise Unavailable("the DNS server of containers does not answer") from None

    async def gone(self) -> None:
        """Wait until the server has closed the connection."""
        await asyncio.wait_for(self._gone.wait(), ANSWER_SECONDS)

    def close(self) -> None:
        """Close our end without telling anybody."""
        self._lost = lambda connection: None
        self._end()

    def _read(self) -> None:
        try:
            packet = self._socket.recv(PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._end()
            return
        answer = self._waiting.popleft()
        if not answer.done():
            answer.set_result(json.loads(packet))

    def _end(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._gone.set()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(Unavailable("the DNS server of containers went away"))
        self._waiting.clear()
        self._lost(self)
