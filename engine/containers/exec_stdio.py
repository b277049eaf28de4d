"""The FIFOs of an exec, seen from the engine: ``<exec-root>/f/<exec id>/{0,1,2}``.

Rule: reading ends are open before the supervisor hears of the exec, and are read to their end (into nothing, if nobody
listens any more), so that a process is never blocked or killed by a client that went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from oci.errors import InvalidArgument

READ_SIZE = 64 << 10
DEFAULT_DETACH_KEYS = b"\x10\x11"
"""ctrl-p ctrl-q."""


class FifoReader:
    """The reading end of a FIFO as an asyncio stream: ``b""`` once every writer has closed it, or after ``stop``."""

    def __init__(self, path: str, *, had_writer: bool = False) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._written = had_writer
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """What is there, at most 64 KiB; waits while there is nothing."""
        while self._fd >= 0:
            try:
                data = os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                if self._stopped:
                    break
                await self._readable()
                continue
            if data or self._written or self._stopped:
                self._written = True
                return data
            # No writer has come yet: the kernel's hang-up notice appears only after the first one left.
            await self._readable()
            self._written = True
        return b""

    async def _readable(self) -> None:
        self._waiter = self._loop.create_future()
        fd = self._fd
        self._loop.add_reader(fd, self._wake)
        try:
            await self._waiter
        finally:
            # After ``close`` the number may be somebody else's.
            if self._fd == fd:
                self._loop.remove_reader(fd)
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def stop(self) -> None:
        """Give out what has arrived and then end, though writers may be left."""
        self._stopped = True
        self._wake()

    def close(self) -> None:
        """Close the FIFO. Idempotent."""
        self._stopped = True
        self._wake()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.remove_reader(fd)
            os.close(fd)


class FifoWriter:
    """The writing end of an exec's stdin."""

    def __init__(self, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        # Opened for both ways, for there is no reader yet; ``established`` lets go of the reading side.
        self._holder = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def established(self) -> None:
        """The process has its end: from now on its death shows as a broken pipe."""
        if self._holder >= 0:
            os.close(self._holder)
            self._holder = -1

    async def write(self, data: bytes) -> None:
        """Write all of ``data``; raises ``BrokenPipeError`` when nobody reads any more."""
        view = memoryview(data)
        while view:
            if self._fd < 0:
                raise BrokenPipeError("stdin is closed")
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        ready = asyncio.Event()
        fd = self._fd
        self._loop.add_writer(fd, ready.set)
        try:
            await ready.wait()
        finally:
            if self._fd == fd:
                self._loop.remove_writer(fd)

    def close(self) -> None:
        """Close our end. Idempotent."""
        self.established()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.remove_writer(fd)
            os.close(fd)


class ExecFifos:
    """The FIFOs one exec asked for. ``paths`` are what ``Tasks.Exec`` is given: ``""`` where there is none."""

    def __init__(self, directory: str, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._directory = directory
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.paths = tuple(
            self._make(number) if wanted else "" for number, wanted in enumerate((stdin, stdout, stderr))
        )
        self.stdin = FifoWriter(self.paths[0]) if stdin else None
        self.outputs = {n: FifoReader(self.paths[n]) for n in (1, 2) if self.paths[n]}

    def _make(self, number: int) -> str:
        path = f"{self._directory}/{number}"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        return path

    def close(self) -> None:
        """Close everything and remove the directory. Idempotent."""
        if self.stdin is not None:
            self.stdin.close()
        for reader in self.outputs.values():
            reader.close()
        remove_fifos(self._directory)


def remove_fifos(directory: str) -> None:
    """Unlink an exec's FIFOs and their directory."""
    for name in ("0", "1", "2"):
        with contextlib.suppress(OSError):
            os.unlink(f"{directory}/{name}")
    with contextlib.suppress(OSError):
        os.rmdir(directory)


async def drain_left_over(root: str) -> None:
    """After a daemon's death: read what execs of its time still write, until they end, so that none of them blocks."""
    with contextlib.suppress(FileNotFoundError):
        await asyncio.gather(*(_drain_one(f"{root}/{name}") for name in os.listdir(root)))


async def _drain_one(directory: str) -> None:
    readers = []
    for name in ("1", "2"):
        with contextlib.suppress(OSError):
            # Without a writer now there will never be one.
            readers.append(FifoReader(f"{directory}/{name}", had_writer=True))
    try:
        await asyncio.gather(*(_discard(reader) for reader in readers))
    finally:
        for reader in readers:
            reader.close()
        remove_fifos(directory)


async def _discard(reader: FifoReader) -> None:
    while await reader.read():
        pass


_NAMED = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` as bytes; the default for ``""``. Raises ``InvalidArgument`` in Docker's words."""
    if not text:
        return DEFAULT_DETACH_KEYS
    out = bytearray()
    for key in text.split(","):
        if len(key) == 1:
            out.append(ord(key) & 0x7F)
            continue
        name = key.removeprefix("ctrl-")
        if key == "DEL":
            out.append(127)
        elif key != name and len(name) == 1 and ("a" <= name <= "z" or name in _NAMED):
            out.append(_NAMED[name] if name in _NAMED else ord(name) - ord("a") + 1)
        else:
            raise InvalidArgument(f"Unknown character: '{key}'")
    return bytes(out)


class DetachFilter:
    """Finds the detach sequence in a terminal's input; what turns out not to be it is passed on."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes to pass on, whether the sequence is complete)."""
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    return bytes(out), True
                continue
            out += self._keys[: self._matched]
            self._matched = 1 if byte == self._keys[0] else 0
            if not self._matched:
                out.append(byte)
        return bytes(out), False
