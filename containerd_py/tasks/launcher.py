"""asyncio clients of the zygote and the keeper: SEQPACKET, one JSON object a packet, answers in order.

Rule: one connection each, opened on first use and opened again when lost; when nobody listens any more, ``restart``
starts a new helper. ``request`` sends at once and needs no lock: the order of answers is the order of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from containerd_py.tasks import helpers
from oci import errors

READY_SECONDS = 10.0
"""How long a helper that had to be started anew may take to listen."""


RESTART_PAUSE = 0.1
"""Before another try when a helper that was just started has ended as well."""


LAUNCH_ATTEMPTS = 4
"""How many zygotes may die under one request."""


class HelperLost(errors.Unavailable):
    """The helper hung up before it answered."""


class HelperClient:
    """Requests to one helper process. Use inside one event loop."""

    def __init__(self, name: str, path: str, restart: Callable[[], int]) -> None:
        """``restart`` starts a new helper and gives its pid."""
        self.name = name
        self.path = path
        self._restart = restart
        self._socket: socket.socket | None = None
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._opening: asyncio.Task[socket.socket] | None = None
        self.on_lost: Callable[[], None] | None = None

    async def request(self, message: dict[str, object]) -> dict[str, Any]:
        """The helper's answer. Raises ``HelperLost``, or ``Internal`` with the helper's own words."""
        peer = self._socket or await self._open()
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            peer.send(msgspec.json.encode(message))
        except BlockingIOError:
            raise errors.ResourceExhausted(f"the {self.name} has more requests than it can take") from None
        except OSError as error:
            self._hang_up()
            raise HelperLost(f"the {self.name} at {self.path} cannot be reached: {error}") from error
        self._waiting.append(waiter)
        answer: dict[str, Any] = msgspec.json.decode(await waiter, type=dict)
        if "error" in answer:
            raise errors.Internal(str(answer["error"]))
        return answer

    async def connect(self) -> None:
        """Connect now (starting the helper if need be), so that the first request finds it warm."""
        if self._socket is None:
            await self._open()

    def close(self) -> None:
        """Hang up for good; the helper goes on."""
        self.on_lost = None
        self._hang_up()

    async def _open(self) -> socket.socket:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._connect())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[socket.socket]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._socket = opening.result()

    async def _connect(self) -> socket.socket:
        started = -1
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                peer.connect(self.path)
            except OSError as error:
                peer.close()
                if not isinstance(error, BlockingIOError) and (started < 0 or helpers.has_ended(started)):
                    if started >= 0:
                        await asyncio.sleep(RESTART_PAUSE)
                    started = self._restart()
                if asyncio.get_running_loop().time() > deadline:
                    raise HelperLost(
                        f"the {self.name} at {self.path} does not answer: {error}", hint="its log tells why"
                    ) from error
                await asyncio.sleep(0.003)
            else:
                asyncio.get_running_loop().add_reader(peer, self._readable, peer)
                return peer

    def _readable(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
        elif self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(data)

    def _hang_up(self) -> None:
        peer, self._socket = self._socket, None
        if peer is None:
            return
        asyncio.get_running_loop().remove_reader(peer)
        peer.close()
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(HelperLost(f"the {self.name} at {self.path} ended before it answered"))
        if self.on_lost is not None:
            self.on_lost()


class Launched(NamedTuple):
    """A shim that listens. ``version`` is that of the Task service it speaks; ``pid`` 0 when unknown."""

    address: str
    version: int
    pid: int


class Zygote:
    """Shims of ``io.containerd.py.v2``: forked from the zygote, descriptors parked with the keeper."""

    def __init__(self, zygote: HelperClient, keeper: HelperClient, *, address: str, ttrpc: str, debug: bool) -> None:
        self._zygote = zygote
        self._keeper = keeper
        self._address = address
        self._ttrpc = ttrpc
        self._debug = debug

    async def start(self, namespace: str, id: str, bundle: str, socket_path: str) -> Launched:
        """Fork a shim for a new container; it listens on ``socket_path`` when this returns."""
        return await self._launch("start", namespace, id, bundle, socket_path)

    async def restore(self, namespace: str, id: str, bundle: str, socket_path: str) -> Launched:
        """Fork a shim that takes over the container of ``bundle`` from one that died."""
        return await self._launch("restore", namespace, id, bundle, socket_path)

    async def _launch(self, op: str, namespace: str, id: str, bundle: str, socket_path: str) -> Launched:
        request: dict[str, object] = {
            "op": op,
            "namespace": namespace,
            "id": id,
            "bundle": bundle,
            "address": self._address,
            "ttrpc_address": self._ttrpc,
            "keeper": self._keeper.path,
            "socket": socket_path,
            "debug": self._debug,
        }
        answer = await self._persistently(request)
        return Launched(str(answer["address"]), 2, int(answer["pid"]))

    async def _persistently(self, request: dict[str, object]) -> dict[str, Any]:
        """Ask until a zygote lives long enough: a shim that the last one forked is evicted by the next one's."""
        for _ in range(LAUNCH_ATTEMPTS - 1):
            with contextlib.suppress(HelperLost):
                return await self._zygote.request(request)
        return await self._zygote.request(request)

    async def reaped(self, pid: int) -> int | None:
        """``waitpid`` status of an orphaned container the zygote reaped; None when it knows nothing."""
        answer = await self._zygote.request({"op": "reaped", "pid": pid})
        status = answer.get("status")
        return status if isinstance(status, int) else None

    async def drop(self, namespace: str, id: str) -> None:
        """Make the keeper forget the container's descriptors."""
        await self._keeper.request({"op": "drop", "key": f"{namespace}/{id}"})
