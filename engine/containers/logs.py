"""``docker logs``: lines of the raw log as Docker's clients want them, for any size of log.

Rule: nothing is read before it is sent; a batch is at most ``BATCH`` bytes, read in a thread, and who follows sleeps
until the index file grows (inotify) or the container's life takes a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote_plus

import msgspec

from engine.containers import logtag
from engine.containers.inotify import DirectoryWatch
from engine.containers.machine import Machine
from engine.containers.registry import Registry
from engine.containers.times import rfc3339_fixed
from oci.errors import FailedPrecondition, InvalidArgument, Unimplemented
from protos.attach import frame_header
from protos.rawlog import INDEX_NAME, Line, LineReader, RawLog

BATCH = 256 << 10
NOTHING = "(?!)"
"""A pattern that nothing matches."""

RECHECK_SECONDS = 5.0
"""How often a follower looks even without a notice: the kernel's notices do not cover every file system."""


class LogQuery(msgspec.Struct, frozen=True):
    """What ``GET /containers/{id}/logs`` asks for; times in ns since the epoch (0: none), ``tail`` −1 for all."""

    stdout: bool
    stderr: bool
    follow: bool = False
    since: int = 0
    until: int = 0
    tail: int = -1
    timestamps: bool = False
    details: bool = False


class Logs:
    """Reads containers' logs."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watch = DirectoryWatch(INDEX_NAME)

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def open(self, reference: str, query: LogQuery) -> tuple[Machine, AsyncIterator[bytes]]:
        """The container and its log as an encoded stream. Raises in Docker's words before the first byte."""
        if not (query.stdout or query.stderr):
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        machine = self._registry.find(reference)
        if machine.removing or machine.doc.state.status in ("dead", "gone"):
            raise FailedPrecondition("can not get logs from container which is dead or marked for removal")
        if machine.doc.host.log_config.type == "none":
            raise Unimplemented("configured logging driver does not support reading")
        return machine, self._stream(machine, query)

    async def _stream(self, machine: Machine, query: LogQuery) -> AsyncIterator[bytes]:
        encode = Encoder(machine, query)
        directory = self._registry.log_directory(machine.id)
        follow = query.follow and machine.doc.state.running
        yield b""
        with RawLog(directory) as log, machine.woken() as wake, self._watched(directory, wake, follow):
            final = not machine.doc.state.alive and not follow
            reader = await asyncio.to_thread(_reader, log, query, final)
            while True:
                wake.clear()
                ended = not (follow and machine.doc.state.running)
                final = ended and not machine.doc.state.alive
                lines = reader.lines(final=final)
                while batch := await asyncio.to_thread(encode.batch, lines):
                    yield batch
                if ended or _past(query.until):
                    return
                await _sleep(wake, query.until)

    @contextlib.contextmanager
    def _watched(self, directory: str, wake: asyncio.Event, wanted: bool) -> Iterator[None]:
        if wanted:
            # Without a watch (no directory, no watches left) the regular look has to do.
            with contextlib.suppress(OSError):
                self._watch.add(directory, wake)
        try:
            yield
        finally:
            self._watch.remove(directory, wake)


def _reader(log: RawLog, query: LogQuery, final: bool) -> LineReader:
    return LineReader(
        log,
        stdout=query.stdout,
        stderr=query.stderr,
        since_ns=query.since,
        until_ns=query.until,
        tail=query.tail,
        final=final,
    )


def _past(until: int) -> bool:
    return bool(until) and time.time_ns() > until


async def _sleep(wake: asyncio.Event, until: int) -> None:
    seconds = RECHECK_SECONDS
    if until:
        seconds = min(seconds, max(0.001, (until - time.time_ns()) / 1e9 + 0.001))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wake.wait(), seconds)


class Encoder:
    """Lines to bytes: frames unless there is a terminal, time and attributes in front where asked for."""

    def __init__(self, machine: Machine, query: LogQuery) -> None:
        self._framed = not machine.doc.config.tty
        self._timestamps = query.timestamps
        self._details = details_text(machine).encode() + b" " if query.details else b""

    def batch(self, lines: Iterator[Line]) -> bytes:
        """About ``BATCH`` bytes of output; ``b""`` at the end of ``lines``."""
        parts: list[bytes] = []
        size = 0
        for line in lines:
            data = self._details + line.data
            if self._timestamps:
                data = rfc3339_fixed(line.time_ns).encode() + b" " + data
            if self._framed:
                parts.append(frame_header(line.stream, len(data)))
            parts.append(data)
            size += len(data)
            if size >= BATCH:
                break
        return b"".join(parts)


def extras(machine: Machine) -> dict[str, str]:
    """What ``--log-opt labels=``, ``env=`` and their ``-regex`` forms add to every line."""
    options = machine.doc.host.log_config.config or {}
    labels = machine.doc.config.labels or {}
    env = dict(entry.partition("=")[::2] for entry in machine.doc.config.env or ())
    found: dict[str, str] = {}
    for option, source in (("labels", labels), ("env", env)):
        names = options.get(option, "").split(",")
        pattern = re.compile(options.get(f"{option}-regex") or NOTHING)
        found |= {name: value for name, value in source.items() if name in names or pattern.search(name)}
    return found


def attributes(machine: Machine) -> dict[str, str]:
    """``extras`` and the tag: Docker's "details"."""
    found = extras(machine)
    tag = (machine.doc.host.log_config.config or {}).get("tag")
    return {**found, "tag": expand_tag(tag, machine)} if tag else found


def expand_tag(template: str, machine: Machine) -> str:
    """``--log-opt tag=`` filled in for ``machine``. Raises ``InvalidArgument``."""
    doc = machine.doc
    image = doc.image_id.removeprefix("sha256:")
    fields: dict[str, Any] = {
        "ID": doc.id[:12],
        "FullID": doc.id,
        "Name": doc.name,
        "ImageID": image[:12],
        "ImageFullID": doc.image_id,
        "ImageName": doc.config.image,
        "DaemonName": "docker",
        "Command": " ".join((doc.path, *doc.args)),
        "Hostname": socket.gethostname(),
        "LogPath": "",
        "ContainerID": doc.id,
        "ContainerName": f"/{doc.name}",
        "ContainerEntrypoint": doc.path,
        "ContainerImageID": doc.image_id,
        "ContainerImageName": doc.config.image,
        "ContainerLabels": dict(doc.config.labels or {}),
        "ExtraAttributes": extras(machine),
        "Config": dict(doc.host.log_config.config or {}),
    }
    return logtag.expand(template, fields)


def details_text(machine: Machine) -> str:
    """``k=v,…`` sorted by key and escaped as in a query string."""
    return ",".join(f"{quote_plus(k)}={quote_plus(v)}" for k, v in sorted(attributes(machine).items()))
