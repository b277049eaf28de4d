"""Where the Dockerfile and the context of a build come from: the client's directories, an upload, or an address.

Rule: everything becomes a ``Context``; what was opened is closed when the build is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import NamedTuple

from engine.build.context import IGNORE_FILE, Context
from engine.build.dockerfile.instructions import Run, Transfer, typed
from engine.build.dockerfile.parser import parse
from engine.build.remote import clone, fetch, is_git, is_url
from engine.build.service import dockerfile_of
from engine.build.trees import resolve
from engine.build.unpacking import Unpacked, is_archive
from engine.buildkit.contents import ContentStores
from engine.buildkit.filesync import translated
from engine.buildkit.requests import BuildRequest, is_ours
from engine.buildkit.sessions import Session
from engine.buildkit.status import Status, Vertex
from engine.buildkit.synced import SyncedContext, reduced
from oci.errors import GantryError, InvalidArgument
from oci.ignorefile import IgnoreRules
from protos.buildkit.upload_pb2 import BytesMessage

UPLOAD = "http://buildkit-session/"
UPLOADED = "context"
PULL = "/moby.upload.v1.Upload/Pull"
_SYNTAX = re.compile(rb"^(?:#|//)[ \t]*syntax[ \t]*=[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)


class Inputs(NamedTuple):
    """What is built: the Dockerfile's text, its vertex, and the context."""

    source: bytes
    loaded: Vertex
    context: Context


class Loader:
    """Fetches the inputs of one build; closed with ``stack``."""

    def __init__(self, session: Session, stores: ContentStores, status: Status, stack: AsyncExitStack) -> None:
        self._session = session
        self._stores = stores
        self._status = status
        self._stack = stack

    async def load(self, request: BuildRequest) -> Inputs:
        """Dockerfile and context of ``request``. Raises ``InvalidArgument``, ``NotFound``, ``Unavailable``."""
        remote = await self.address(request.context) if request.context else None
        loaded, source, ignore = await self._dockerfile(request, remote)
        if remote is not None:
            if not request.attributes.get("dockerfilekey"):
                await asyncio.to_thread(remote.ignore, request.filename)
            return Inputs(source, loaded, remote)
        context = self.directory(request.context_key, "[internal] load build context")
        context.leave_out(ignore if ignore is not None else await self.ignored(request.context_key))
        context.expected = _expected(source)
        return Inputs(source, loaded, context)

    async def _dockerfile(
        self, request: BuildRequest, remote: Context | None
    ) -> tuple[Vertex, bytes, list[str] | None]:
        """Its vertex, its text, and the patterns of a ``.dockerignore`` of its own."""
        name, ignore = request.filename, f"{request.filename}{IGNORE_FILE}"
        title = f"[internal] load build definition from {name}"
        tree: Context
        if request.dockerfile_key:
            key = request.dockerfile_key
            tree = directory = self.directory(key, title, "transferring dockerfile:")
            await directory.prepare([name, ignore])
            assert directory.vertex is not None, "prepare makes it"
            loaded = directory.vertex
        else:
            assert remote is not None, "without a key the context is an address"
            tree = remote
            with self._status.step(title) as loaded:
                pass
        try:
            source = await asyncio.to_thread(dockerfile_of, tree, resolve(tree, name))
        except InvalidArgument as error:
            error.message = f"failed to read dockerfile: open {name}: no such file or directory"
            raise
        _note_syntax(source, loaded)
        own = _patterns(tree, ignore) if request.dockerfile_key else None
        return loaded, source, own

    def directory(self, name: str, title: str, label: str = "transferring context:") -> SyncedContext:
        """A directory of the client; nothing is received yet."""
        context = SyncedContext(self._stores.spool(), self._session, name, self._stores, self._status, title, label)
        self._stack.callback(context.close)
        return context

    async def ignored(self, name: str) -> list[str]:
        """Patterns of the ``.dockerignore`` in a directory of the client."""
        tree = self.directory(name, f"[internal] load {IGNORE_FILE}")
        await tree.prepare([IGNORE_FILE])
        return _patterns(tree, IGNORE_FILE) or []

    async def named(self, name: str, value: str) -> Context | str:
        """What a named context stands for: files, or an image's name."""
        if value.startswith("docker-image://"):
            return value.removeprefix("docker-image://")
        if not value.startswith("local:"):
            return await self.address(value)
        directory = value.removeprefix("local:")
        context = self.directory(directory, f"[context {name}] load from client")
        context.leave_out(await self.ignored(directory))
        context.expected = None
        return context

    async def address(self, address: str) -> Context:
        """The files at an address, or of an upload."""
        if address.startswith(UPLOAD):
            with self._status.step("[internal] load remote build context"):
                return await self._uploaded(address)
        with self._status.step(f"[internal] load git source {address}" if is_git(address) else address):
            if is_git(address):
                return self._kept(await clone(address, self._stores.spool()))
            if is_url(address):
                return await self._download(address)
        raise InvalidArgument(f"a build context that is no directory, no git repository and no address: {address}")

    def _kept(self, context: Context) -> Context:
        self._stack.callback(context.close)
        return context

    async def _download(self, address: str) -> Context:
        """A packed context; anything else is a Dockerfile."""
        context = self._kept(Context(self._stores.spool()))
        with await fetch(address, "", context.sibling()) as got:
            if await asyncio.to_thread(is_archive, got.tree, got.name):
                with got.tree.open(got.name) as file:
                    await asyncio.to_thread(context.receive, Unpacked(file).read)
            else:
                with got.tree.open(got.name) as file:
                    context.add_file("Dockerfile", await asyncio.to_thread(file.read))
        return context

    async def _uploaded(self, address: str) -> Context:
        """A packed context that the client has on its standard input."""
        context = self._kept(Context(self._stores.spool()))
        packed = self._kept(Context(context.sibling()))
        with packed.adding(UPLOADED, 0o600) as write:
            async for piece in self._pull(address.removeprefix(UPLOAD.rstrip("/"))):
                write(piece)
        with packed.open(UPLOADED) as file:
            await asyncio.to_thread(context.receive, Unpacked(file).read)
        return context

    async def _pull(self, path: str) -> AsyncIterator[bytes]:
        call = self._session.connection.call(PULL, (("urlpath", path),))
        try:
            call.done_writing()
            while pieces := await call.read():
                for piece in pieces:
                    yield BytesMessage.FromString(piece).data
        except GantryError as error:
            raise translated(error, "the context on the client's standard input") from None
        finally:
            call.cancel()


def _patterns(tree: Context, name: str) -> list[str] | None:
    """The patterns in the file ``name``; None when there is none."""
    real = resolve(tree, name)
    node = tree.node(real)
    if node is None or not node.is_file:
        return None
    with tree.open(real) as file:
        return IgnoreRules(file.read().decode(errors="replace").splitlines()).patterns


def _note_syntax(source: bytes, loaded: Vertex) -> None:
    found = _SYNTAX.search(source[:4096])
    image = found[1].decode(errors="replace") if found else ""
    if image and not is_ours(image):
        loaded.log(f"syntax={image} is not fetched: the Dockerfile language is built in\n".encode())


def _expected(source: bytes) -> set[str] | None:
    """Files of the context that instructions name; None when they may need everything.

    A Dockerfile that cannot be parsed needs nothing: its errors are told when it is built.
    """
    found: set[str] = set()
    with contextlib.suppress(GantryError):
        dockerfile = parse(source)
        for instruction in dockerfile.instructions:
            meaning = typed(instruction, dockerfile.escape)
            sources: Iterable[str] = ()
            if isinstance(meaning, Transfer) and not meaning.from_:
                sources = [text for text in meaning.sources if not (is_url(text) or is_git(text))]
            elif isinstance(meaning, Run) and any(m.type == "bind" and not m.from_ for m in meaning.mounts):
                return None
            paths = reduced(sources)
            if paths is None:
                return None
            found |= paths
    return found
