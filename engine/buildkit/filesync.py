"""Directories of a client, received over its session (fsutil's protocol: files are announced, contents asked for).

Rule: names and links of a client are only keys of an index; contents that were sent before are not asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote_plus

from engine.build.trees import Node
from engine.buildkit.contents import Arriving, Contents, Place
from engine.buildkit.filemodes import node_of
from engine.buildkit.http2 import Call
from engine.buildkit.sessions import Session
from oci.errors import DataLoss, GantryError, InvalidArgument, NotFound, Unavailable
from protos.buildkit.fsutil_pb2 import Packet, Stat

DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
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
    call = session.connection.call(DIFF_COPY, wanted)
    try:
        return await _Receiver(call, contents, tell).run()
    except GantryError as error:
        if error is call.error:
            raise translated(error, f"directory {name!r} of the client") from None
        raise
    finally:
        call.cancel()


def translated(error: GantryError, what: str) -> GantryError:
    """An error of a session, with what was asked for."""
    kind = NotFound if "no access allowed" in error.message else type(error)
    return kind(f"{what}: {error.message}")


class _Receiver:
    """One transfer."""

    def __init__(self, call: Call, contents: Contents, tell: Callable[[int], None]) -> None:
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
        """All of it. Raises the call's errors, ``DataLoss``, ``InvalidArgument``."""
        writer = asyncio.create_task(self._write())
        try:
            while not self._complete:
                packets = await self._call.read()
                if not packets:
                    raise Unavailable("the transfer of the build context ended early")
                for packet in packets:
                    self._take(Packet.FromString(packet))
            self._requests.put_nowait(Packet(type=Packet.PACKET_FIN))
            self._requests.put_nowait(None)
            await writer
            while await self._call.read():
                pass
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return self._files()

    async def _write(self) -> None:
        """Requests go out beside what comes in: neither side may wait for the other."""
        while (packet := await self._requests.get()) is not None:
            await self._call.write(packet.SerializeToString())
        self._call.done_writing()

    @property
    def _complete(self) -> bool:
        return self._all_announced and not self._arriving

    def _take(self, packet: Packet) -> None:
        """One packet."""
        if packet.type == Packet.PACKET_STAT:
            if packet.HasField("stat"):
                self._announce(packet.stat)
            else:
                self._all_announced = True
        elif packet.type == Packet.PACKET_DATA:
            self._data(packet.ID, packet.data)
        elif packet.type == Packet.PACKET_ERR:
            raise InvalidArgument(f"the client could not send its files: {packet.data.decode(errors='replace')}")

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
