"""Directories of a client, received over its session (fsutil's protocol: files are announced, contents asked for).

Rule: names and links of a client are only keys of an index; contents that were sent before are not asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import grpc

from engine.backend import END_OF_STREAM
from engine.build.trees import Node
from engine.buildkit.contents import Arriving, Contents, Place
from engine.buildkit.filemodes import node_of
from engine.buildkit.sessions import Session
from oci.errors import DataLoss, GantryError, InvalidArgument, NotFound, Unavailable
from protos.buildkit.filesync_pb2_grpc import FileSyncStub
from protos.buildkit.fsutil_pb2 import Packet, Stat

Metadata = tuple[tuple[str, str], ...]


class File(NamedTuple):
    """One file; ``place`` is where its content is, None for what has none. ``xattrs`` by name."""

    path: str
    node: Node
    place: Place | None
    xattrs: Mapping[str, bytes]


def metadata(name: str, values: Mapping[str, Sequence[str]]) -> Metadata:
    """What is sent with a request for the directory ``name``; texts that are not ASCII are escaped, and marked so."""
    found: list[tuple[str, str]] = []
    for key, texts in {"dir-name": [name], **values}.items():
        escape = not all(text.isascii() and text.isprintable() for text in texts)
        found += [(key, quote_plus(text) if escape else text) for text in texts]
        if escape:
            found.append((f"{key}-encoded", "1"))
    return tuple(found)


async def receive(
    session: Session,
    name: str,
    contents: Contents,
    tell: Callable[[int], None],
    *,
    paths: Iterable[str] = (),
    excluded: Sequence[str] = (),
) -> list[File]:
    """The files of the client's directory ``name``: those that ``paths`` lead to (all without any), links followed.

    ``tell`` gets the bytes received so far. Raises ``NotFound`` when the client does not give that directory.
    """
    wanted = metadata(name, {"followpaths": list(paths), "exclude-patterns": list(excluded)})
    stub: Any = FileSyncStub(session.channel)
    call = stub.DiffCopy(metadata=wanted)
    try:
        return await _Receiver(call, contents, tell).run()
    except grpc.aio.AioRpcError as error:
        raise translated(error, f"directory {name!r} of the client") from None
    finally:
        call.cancel()


def translated(error: grpc.aio.AioRpcError, what: str) -> GantryError:
    """An error of a session as one of ours."""
    details = error.details() or str(error.code())
    if error.code() == grpc.StatusCode.NOT_FOUND or "no access allowed" in details:
        return NotFound(f"{what}: {details}")
    return Unavailable(f"{what}: {details}")


class _Receiver:
    """One transfer."""

    def __init__(self, call: Any, contents: Contents, tell: Callable[[int], None]) -> None:
        self._call = call
        self._contents = contents
        self._tell = tell
        self._announced: dict[str, tuple[Stat, Node]] = {}
        self._places: dict[str, Place] = {}
        self._arriving: dict[int, tuple[str, Arriving]] = {}
        self._requests: asyncio.Queue[Packet | None] = asyncio.Queue()
        self._count = 0
        self._bytes = 0
        self._all_announced = False

    async def run(self) -> list[File]:
        writer = asyncio.create_task(self._write())
        try:
            while (packet := await self._call.read()) is not END_OF_STREAM:
                if self._take(packet):
                    break
            if not self._complete:
                raise Unavailable("the transfer of the build context ended early")
            self._requests.put_nowait(Packet(type=Packet.PACKET_FIN))
            self._requests.put_nowait(None)
            await writer
            while await self._call.read() is not END_OF_STREAM:
                pass
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError, asyncio.InvalidStateError):
                await writer
        return self._files()

    async def _write(self) -> None:
        """Requests go out beside what comes in: neither side may wait for the other."""
        while (packet := await self._requests.get()) is not None:
            await self._call.write(packet)
        await self._call.done_writing()

    @property
    def _complete(self) -> bool:
        return self._all_announced and not self._arriving

    def _take(self, packet: Packet) -> bool:
        """One packet; whether everything has come."""
        if packet.type == Packet.PACKET_STAT:
            if packet.HasField("stat"):
                self._announce(packet.stat)
            else:
                self._all_announced = True
        elif packet.type == Packet.PACKET_DATA:
            self._data(packet.ID, packet.data)
        elif packet.type == Packet.PACKET_ERR:
            raise InvalidArgument(f"the client could not send its files: {packet.data.decode(errors='replace')}")
        return self._complete

    def _announce(self, told: Stat) -> None:
        number, self._count = self._count, self._count + 1
        path = told.path.strip("/")
        if not path or ".." in path.split("/"):
            raise InvalidArgument(f"the client announced a file with an impossible name: {told.path!r}")
        node = node_of(told)
        self._announced[path] = told, node
        if not node.is_file or told.linkname:
            return
        known = self._contents.find(path, node)
        if known is not None:
            self._places[path] = known
        elif not node.size:
            self._places[path] = Arriving(self._contents, node).finish()
        else:
            self._arriving[number] = path, Arriving(self._contents, node)
            self._requests.put_nowait(Packet(type=Packet.PACKET_REQ, ID=number))

    def _data(self, number: int, data: bytes) -> None:
        if number not in self._arriving:
            raise DataLoss(f"the client sent file {number}, which was not asked for")
        path, arriving = self._arriving[number]
        if data:
            arriving.write(data)
            self._bytes += len(data)
            self._tell(self._bytes)
            return
        del self._arriving[number]
        place = self._places[path] = arriving.finish()
        self._contents.put(path, self._announced[path][1], place)

    def _files(self) -> list[File]:
        """In the order they were announced: parents first, links after what they lead to."""
        found: list[File] = []
        for path, (told, node) in self._announced.items():
            place = self._places.get(path)
            if node.is_file and told.linkname:
                place = self._places.get(told.linkname.strip("/"))
                if place is None:
                    raise DataLoss(f"the client links {path} to {told.linkname}, which it did not send")
                self._places[path] = place
            actual = node if place is None else node._replace(size=place.size)
            found.append(File(path, actual, place, dict(told.xattrs) if told.xattrs else {}))
        return found
