"""Files of a container from outside: ``docker cp``, ``export``, and what ``HEAD archive`` tells.

Rule: the daemon never opens a path of a container; a worker process (``archive_worker``) that has the container's root
as its own does. Archives are passed on in pieces as they come.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import msgspec

from engine.containers.machine import Machine
from engine.containers.model import MountPoint
from engine.containers.registry import Registry
from engine.containers.subpaths import Subpaths
from engine.containers.times import rfc3339
from engine.spec import users
from engine.spec.rootfs import Rootfs, layers_of
from oci.errors import FailedPrecondition, GantryError, Internal, InvalidArgument, NotFound, PermissionDenied

WORKER = os.path.join(os.path.dirname(__file__), "archive_worker.py")
PIECE = 256 << 10


class Worker:
    """One running worker process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self.released: Callable[[], Awaitable[None]] | None = None
        """Called when the worker has ended."""

    @classmethod
    async def start(cls, request: dict[str, Any]) -> Worker:
        """Start a worker on ``request``."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", WORKER, msgspec.json.encode(request).decode(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            limit=PIECE, start_new_session=True, env={"LANG": "C.UTF-8", "PYTHONUTF8": "1"},
        )  # fmt: skip
        return cls(process)

    async def answer(self) -> dict[str, Any] | None:
        """The ``stat`` object of its first line; raises what it refused (``NotFound`` with the bare path)."""
        line = await self._stdout.readline()
        if not line:
            assert self._process.stderr is not None
            trace = (await self._process.stderr.read()).decode(errors="replace").strip()
            raise Internal(f"the archive worker failed: {trace.splitlines()[-1] if trace else 'no answer'}")
        document = msgspec.json.decode(line, type=dict[str, Any])
        if "error" not in document:
            found: dict[str, Any] | None = document["stat"]
            return found
        kinds: dict[str, type[GantryError]] = {
            "notfound": NotFound,
            "invalid": InvalidArgument,
            "denied": PermissionDenied,
        }
        raise kinds.get(document["error"], Internal)(document["message"])

    async def feed(self, chunks: AsyncIterator[bytes]) -> None:
        """Give the worker its archive. A worker that stopped reading has its answer ready."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            async for chunk in chunks:
                self._stdin.write(chunk)
                await self._stdin.drain()
        self._stdin.close()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The archive; raises ``Internal`` at its end if the worker broke off."""
        try:
            while data := await self._stdout.read(PIECE):
                yield data
            if await self._process.wait():
                raise Internal("the archive broke off: see the daemon's log")
        finally:
            await self.close()

    async def close(self) -> None:
        """End the worker, whatever it does."""
        self._stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        if self.released is not None:
            await self.released()


class Archives:
    """File operations on containers in any state."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def stat(self, reference: str, path: str) -> str:
        """``X-Docker-Container-Path-Stat``; raises ``NotFound`` in Docker's words."""
        worker = await self._begin(reference, "stat", path)
        try:
            return encoded_stat(await self._answer(worker, reference, path))
        finally:
            await worker.close()

    async def get(self, reference: str, path: str) -> tuple[str, AsyncIterator[bytes]]:
        """The stat header and the archive of ``path``."""
        worker = await self._begin(reference, "get", path)
        try:
            header = encoded_stat(await self._answer(worker, reference, path))
        except BaseException:
            await worker.close()
            raise
        return header, worker.pieces()

    async def put(
        self, reference: str, path: str, chunks: AsyncIterator[bytes], *, keep_kinds: bool, as_user: bool
    ) -> None:
        """Unpack an archive into the directory ``path``."""
        machine = self._registry.find(reference)
        owner = await self._owner(machine) if as_user else None
        worker = await self._begin(reference, "put", path, keep_kinds=keep_kinds, owner=owner)
        try:
            await worker.feed(chunks)
            await self._answer(worker, reference, path)
        finally:
            await worker.close()

    async def export(self, reference: str) -> AsyncIterator[bytes]:
        """The whole root file system, without what is mounted into it."""
        worker = await self._begin(reference, "export", "/")
        try:
            await worker.answer()
        except BaseException:
            await worker.close()
            raise
        self._registry.publish(self._registry.find(reference), "export")
        return worker.pieces()

    async def _begin(self, reference: str, op: str, path: str, **more: Any) -> Worker:
        machine = self._registry.find(reference)
        doc = machine.doc
        if doc.state.status == "dead" or machine.removing:
            raise FailedPrecondition(f"container {doc.id} is dead or marked for removal")
        request: dict[str, Any] = {
            "op": op,
            "path": path,
            "points": _points(doc.mounts),
            "readonly": doc.host.readonly_rootfs,
            **more,
        }
        held = contextlib.ExitStack()
        volumes: list[str] = []
        user = f"{doc.id} files"
        if doc.state.alive and doc.state.pid:
            request["pid"] = doc.state.pid
        else:
            volumes = [point.name for point in doc.mounts if point.type == "volume"]
            for name in volumes:
                await self._registry.volumes.use(name, user)
            subpaths = held.enter_context(Subpaths(doc.mounts, self._registry.subpaths))
            request["points"] = _points(subpaths)
            request["rootfs"] = msgspec.to_builtins(await self._registry.rootfs(machine))
            request["rootfs"] = [m | {"options": list(m["options"])} for m in request["rootfs"]]
            request["directory"] = self._registry.directory(doc.id)
            os.makedirs(request["directory"], mode=0o710, exist_ok=True)
        worker = await Worker.start(request)

        async def release() -> None:
            held.close()
            for name in volumes:
                await self._registry.volumes.release(name, user)

        worker.released = release
        return worker

    @staticmethod
    async def _answer(worker: Worker, reference: str, path: str) -> dict[str, Any] | None:
        try:
            return await worker.answer()
        except NotFound:
            raise NotFound(f"Could not find the file {path} in container {reference}") from None

    async def _owner(self, machine: Machine) -> tuple[int, int]:
        rootfs = await self._registry.rootfs(machine)
        with Rootfs(layers_of(rootfs)) as files:
            user = users.resolve_in(files, machine.doc.config.user)
        return user.uid, user.gid


def _points(mounts: Iterable[MountPoint]) -> list[dict[str, Any]]:
    """What the worker is told of a container's mounts."""
    return [{"source": p.source, "destination": p.destination, "rw": p.rw} for p in mounts if p.type != "tmpfs"]


def encoded_stat(document: dict[str, Any] | None) -> str:
    """The header's value."""
    assert document is not None
    document = dict(document)
    at = document.pop("mtime_ns")
    shown = {k: document[k] for k in ("name", "size", "mode")} | {"mtime": rfc3339(at)}
    shown["linkTarget"] = document["linkTarget"]
    return base64.b64encode(msgspec.json.encode(shown)).decode()
