"""What a build leaves behind: an image in our store, files or a tar at the client.

Rule: the answer's names are those that BuildKit's clients read (``containerimage.digest``, …); they know an image by
its id, as with docker's own store.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from engine.build import layers
from engine.build.copying import Request, members
from engine.build.service import BuildService
from engine.build.stagetree import StageTree
from engine.build.trees import Tree, walk
from engine.buildkit.filemodes import stat_of
from engine.buildkit.filesync import translated
from engine.buildkit.jobs import Job, Result
from engine.buildkit.sessions import Session
from engine.buildkit.status import Vertex
from engine.images.names import check_name
from oci import reference as references
from oci.errors import GantryError, InvalidArgument, Unavailable, Unimplemented
from oci.reference import Reference
from protos.buildkit.filesync_pb2 import BytesMessage
from protos.buildkit.fsutil_pb2 import Packet

SEND = "/moby.filesync.v1.FileSend/DiffCopy"
EXPORTER_KEY = "buildkit-attachable-exporter-id"
IMAGES = frozenset({"moby", "image", "docker"})
PIECE = 32 << 10


class Export(NamedTuple):
    """What a client wants; ``number`` is its place among several."""

    type: str
    attributes: Mapping[str, str]
    number: int = 0


def check(exports: list[Export]) -> None:
    """Refuse what cannot be made, before anything is built. Raises ``Unimplemented``, ``InvalidArgument``."""
    for export in exports:
        if export.type not in IMAGES | {"local", "tar"}:
            raise Unimplemented(f"--output type={export.type} is not built", hint="image, local or tar")
        if export.type in IMAGES:
            _names(export)
            if export.attributes.get("push") == "true" and export.type == "image":
                raise Unimplemented("an image is not pushed by the builder", hint="docker push")


async def export(builds: BuildService, job: Job, result: Result, exports: list[Export]) -> dict[str, str]:
    """Make all of ``exports``; what the client is told of them."""
    told: dict[str, str] = {}
    for wanted in exports:
        if wanted.type in IMAGES:
            told |= await _image(builds, job, result, wanted)
        elif wanted.type == "local":
            await _local(builds, job, result, wanted)
        else:
            await _tar(builds, job, result, wanted)
    return told


def _names(export: Export) -> tuple[Reference, ...]:
    texts = [text.strip() for text in export.attributes.get("name", "").split(",")]
    return tuple(check_name(references.parse(text).tagged()) for text in texts if text)


async def _image(builds: BuildService, job: Job, result: Result, wanted: Export) -> dict[str, str]:
    tags = _names(wanted)
    with job.status.step("exporting to image") as vertex:
        vertex.progress("exporting layers", done=True)
        decoded = await builds.export(result.built, msgspec.structs.replace(result.options, tags=tags))
        vertex.progress(f"writing image {decoded.id}", done=True)
        for tag in tags:
            vertex.progress(f"naming to {tag}", done=True)
    descriptor = json.dumps(
        {"mediaType": decoded.target.media_type, "digest": decoded.target.digest, "size": decoded.target.size}
    )
    told = {
        "containerimage.digest": decoded.id,
        "containerimage.config.digest": decoded.id,
        "containerimage.descriptor": base64.b64encode(descriptor.encode()).decode(),
    }
    if tags:
        told["image.name"] = ",".join(str(tag) for tag in tags)
    return told


async def _tar(builds: BuildService, job: Job, result: Result, wanted: Export) -> None:
    """The file system as one tar, written by the client."""
    session = await job.session()
    with job.status.step("exporting to client tarball") as vertex:
        async with builds.files(result.built) as tree:
            pieces = _archive(tree, result.options.epoch)
            await send_file(session, wanted.number, pieces, vertex)


def _archive(tree: Tree, epoch: int | None) -> Iterator[bytes]:
    """Blocking."""
    found = members(Request("/", (".",), owner=None), tree, StageTree([]))
    yield from layers.archive(found, now=int(time.time()) if epoch is None else epoch, epoch=epoch)


async def send_file(session: Session, number: int, pieces: Iterator[bytes], vertex: Vertex) -> None:
    """``pieces`` as the client's output ``number``. Raises ``Unavailable``."""
    call = session.connection.call(SEND, ((EXPORTER_KEY, str(number)),))
    sent = 0
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            for at in range(0, len(piece), 1 << 20):
                await call.write(BytesMessage(data=piece[at : at + (1 << 20)]).SerializeToString())
            sent += len(piece)
            vertex.progress("sending tarball", sent)
        call.done_writing()
        while await call.read():
            pass
    except GantryError as error:
        raise translated(error, "the client's output") from None
    finally:
        call.cancel()


async def _local(builds: BuildService, job: Job, result: Result, wanted: Export) -> None:
    """The file system as files in a directory of the client."""
    if wanted.attributes.get("mode", "copy") != "copy":
        raise Unimplemented(f"--output mode={wanted.attributes['mode']} is not built")
    session = await job.session()
    with job.status.step("exporting to client directory") as vertex:
        async with builds.files(result.built) as tree:
            await _Sender(session, wanted.number, tree, vertex).run()


class _Sender:
    """One directory on its way to the client: all files are announced, contents follow where they are asked for."""

    def __init__(self, session: Session, number: int, tree: Tree, vertex: Vertex) -> None:
        self._call = session.connection.call(SEND, ((EXPORTER_KEY, str(number)),))
        self._tree = tree
        self._vertex = vertex
        self._paths: dict[int, str] = {}
        self._sent = 0
        self._asked: asyncio.Queue[int | None] = asyncio.Queue()

    async def run(self) -> None:
        """All of it. Raises ``Unavailable``."""
        sending = asyncio.create_task(self._send())
        try:
            while packets := await self._call.read():
                for packet in packets:
                    await self._take(Packet.FromString(packet), sending)
            self._vertex.progress("copying files", self._sent, done=True)
        except GantryError as error:
            raise translated(error, "the client's output") from None
        finally:
            self._call.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _take(self, packet: Packet, sending: asyncio.Task[None]) -> None:
        if packet.type == Packet.PACKET_REQ:
            self._asked.put_nowait(packet.ID)
        elif packet.type == Packet.PACKET_ERR:
            raise Unavailable(packet.data.decode(errors="replace"))
        elif packet.type == Packet.PACKET_FIN:
            self._asked.put_nowait(None)
            await sending
            await self._tell(Packet(type=Packet.PACKET_FIN))
            self._call.done_writing()

    async def _tell(self, packet: Packet) -> None:
        await self._call.write(packet.SerializeToString())

    async def _send(self) -> None:
        for number, (path, node) in enumerate(await asyncio.to_thread(lambda: list(walk(self._tree, "")))):
            if node.is_file:
                self._paths[number] = path
            told = stat_of(path, node, {} if node.is_link else self._tree.xattrs(path))
            await self._tell(Packet(type=Packet.PACKET_STAT, stat=told))
        await self._tell(Packet(type=Packet.PACKET_STAT))
        while (asked := await self._asked.get()) is not None:
            await self._content(asked)

    async def _content(self, number: int) -> None:
        path = self._paths.get(number)
        if path is None:
            raise InvalidArgument(f"the client asked for file {number}, which has no content")
        with self._tree.open(path) as file:
            while piece := await asyncio.to_thread(file.read, PIECE * 8):
                for at in range(0, len(piece), PIECE):
                    await self._tell(Packet(type=Packet.PACKET_DATA, ID=number, data=piece[at : at + PIECE]))
                self._sent += len(piece)
                self._vertex.progress("copying files", self._sent)
        await self._tell(Packet(type=Packet.PACKET_DATA, ID=number))
