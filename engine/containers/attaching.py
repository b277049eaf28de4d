"""Attach: a hijacked connection on one side, the shim's attach socket on the other.

Rule: what a client has been sent is counted per stream, so when a shim dies the relay goes on with its successor at the
same byte, and when the shim has gone for good the rest comes from the raw log. The container is never slowed down.
"""

from __future__ import annotations

import asyncio
import contextlib

from engine.containers.exec_stdio import DetachFilter, parse_detach_keys
from engine.containers.launch import log_sizes
from engine.containers.machine import Machine
from engine.containers.registry import Registry
from engine.http.messages import Duplex
from oci.errors import FailedPrecondition
from protos import attach, rawlog

READ_SIZE = 1 << 16


class Detached(Exception):
    """The client typed the detach keys."""


RECONNECT_SECONDS = 0.05
HEAD_START_SECONDS = 0.02
LINE_LIMIT = 1 << 20


class AttachOptions:
    """What ``POST /containers/{id}/attach`` asked for."""

    __slots__ = ("detach_keys", "logs", "stderr", "stdin", "stdout", "stream")

    def __init__(
        self, *, stdin: bool, stdout: bool, stderr: bool, stream: bool, logs: bool, detach_keys: str = ""
    ) -> None:
        """Raises ``InvalidArgument`` for detach keys that are none."""
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.stream, self.logs = stream, logs
        self.detach_keys = parse_detach_keys(detach_keys)


def check(machine: Machine) -> None:
    """Refuse where Docker does: paused and restarting containers."""
    status = machine.doc.state.status
    if status == "paused":
        raise FailedPrecondition(f"container {machine.id} is paused, unpause the container before attach")
    if status == "restarting":
        raise FailedPrecondition(f"container {machine.id} is restarting, wait until the container is running")


class Relay:
    """One attached client. Create it when the request comes: output from then on is the client's."""

    def __init__(self, registry: Registry, machine: Machine, options: AttachOptions) -> None:
        self._registry = registry
        self._machine = machine
        self._options = options
        self._raw = machine.doc.config.tty
        self._run = machine.current_run()
        self._log = rawlog.RawLog(registry.log_directory(machine.id))
        self._offsets = self._beginning()
        self._shim: asyncio.StreamWriter | None = None
        self._stdin_ended = False
        self._ready = asyncio.Event()

    def _beginning(self) -> list[int]:
        if self._options.logs:
            return [0, 0]
        if self._machine.doc.state.alive:
            return [self._log.size(rawlog.STDOUT), self._log.size(rawlog.STDERR)]
        # Attached before the start: from the first byte of the coming run.
        return list(log_sizes(self._log.directory))

    async def serve(self, client: Duplex) -> None:
        """Relay until the container's run is over, the client detaches, or the client is gone."""
        try:
            if self._options.logs:
                # Clients that read the answer's head through a buffer (the SDK for Python) lose what comes with it.
                await asyncio.sleep(HEAD_START_SECONDS)
            if self._options.stream:
                await self._stream(client)
            elif self._options.logs:
                await self._replay(client)
        finally:
            self._log.close()

    async def _stream(self, client: Duplex) -> None:
        feeding = asyncio.ensure_future(self._feed(client))
        pumping = asyncio.ensure_future(self._pump(client))
        try:
            await asyncio.wait((feeding, pumping), return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() and not feeding.cancelled():
                problem = feeding.exception()
                if isinstance(problem, Detached):
                    self._registry.publish(self._machine, "detach")
                    return
                if isinstance(problem, ConnectionError):
                    return
            await pumping
        finally:
            for task in (feeding, pumping):
                task.cancel()
            await asyncio.gather(feeding, pumping, return_exceptions=True)

    # Out: shim or raw log to client

    async def _pump(self, client: Duplex) -> None:
        while await self._machine.launched(self._run):
            try:
                reader, writer = await asyncio.open_unix_connection(
                    self._registry.attach_socket(self._machine.id), limit=LINE_LIMIT
                )
            except OSError:
                if not await self._pause():
                    break
                continue
            try:
                if not await self._greet(reader, writer):
                    continue
                self._hold_log()
                self._shim = writer
                self._ready.set()
                await self._copy(reader, client)
            finally:
                self._shim = None
                self._ready.clear()
                writer.close()
            if not await self._pause():
                break
        if self._options.stdout or self._options.stderr:
            await self._replay(client)

    async def _pause(self) -> bool:
        """Whether to try the shim again: it may be ending, or being replaced."""
        with self._machine.woken() as wake:
            if self._machine.run_over(self._run):
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), RECONNECT_SECONDS)
        return not self._machine.run_over(self._run)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        options = self._options
        request = attach.AttachRequest(
            stdin=options.stdin and not self._stdin_ended,
            stdout=options.stdout,
            stderr=options.stderr,
            raw=self._raw,
            stdout_offset=self._offsets[0],
            stderr_offset=self._offsets[1],
        )
        try:
            writer.write(attach.encode_request(request))
            line = await reader.readline()
            if not line:
                return await self._pause()
            attach.decode_reply(line)
        except OSError:
            return False
        return True

    async def _copy(self, reader: asyncio.StreamReader, client: Duplex) -> None:
        decoder = attach.FrameDecoder()
        while True:
            try:
                data = await reader.read(READ_SIZE)
            except OSError:
                return
            if not data:
                return
            if self._raw:
                await client.write(data)
                self._offsets[0] += len(data)
                continue
            for stream, payload in decoder.feed(data):
                await client.write(attach.frame_header(stream, len(payload)) + payload)
                self._offsets[stream - 1] += len(payload)

    async def _replay(self, client: Duplex) -> None:
        """What the raw log has past the client's offsets."""
        wanted = {rawlog.STDOUT: self._options.stdout, rawlog.STDERR: self._options.stderr}
        cursor = rawlog.Cursor(self._log, *self._offsets)
        for span in cursor.spans(final=True):
            for chunk in self._log.read_span(span):
                if chunk.data and wanted[chunk.stream]:
                    header = b"" if self._raw else attach.frame_header(chunk.stream, len(chunk.data))
                    await client.write(header + chunk.data)

    def _hold_log(self) -> None:
        """Open the log's files: a container that is removed at its end may not take the last output along."""
        for name in (*rawlog.STREAM_NAMES.values(), rawlog.INDEX_NAME):
            self._log.descriptor(name)

    # In: client to shim

    async def _feed(self, client: Duplex) -> None:
        """Pass stdin on; raises ``Detached``; ends at the client's end of file."""
        options = self._options
        keys = DetachFilter(options.detach_keys) if self._raw and options.stdin else None
        while data := await client.read(READ_SIZE):
            if not options.stdin:
                continue
            if keys is not None:
                data, detached = keys.feed(data)
                if detached:
                    await self._to_shim(data)
                    raise Detached
            await self._to_shim(data)
        self._stdin_ended = True
        if options.stdin:
            await self._ready.wait()
            if self._shim is not None and self._shim.can_write_eof():
                with contextlib.suppress(OSError):
                    self._shim.write_eof()
        await asyncio.Event().wait()

    async def _to_shim(self, data: bytes) -> None:
        while data:
            await self._ready.wait()
            shim = self._shim
            if shim is None:
                continue
            try:
                shim.write(data)
                await shim.drain()
                return
            except OSError:
                self._ready.clear()
