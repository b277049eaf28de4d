"""The daemon's side of the layer worker: starts it, hands it jobs, waits for answers without blocking the loop.

Rule: the worker is a program of its own (``posix_spawn`` by way of ``subprocess``), because a daemon that has imported
grpc must not fork. It is started at the first layer and again whenever it is found dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from containerd_py.interfaces import Mount, Usage
from oci.errors import Internal, from_code

_MAX_ANSWER = 64 << 10
_END_GRACE = 5.0
CONCURRENCY = max(2, len(os.sched_getaffinity(0)))
"""Layers unpacked at once: unpacking is bound by the processor and the disk."""


class Applied(NamedTuple):
    """An unpacked layer: digest and size of the plain tar; ``usage`` of the target where that is one directory."""

    digest: str
    size: int
    entries: int
    usage: Usage | None = None


class Separated(NamedTuple):
    """A layer unpacked on its own. ``root``: the archive says what its root directory is like; ``removed_in``:
    directories it removes files of older layers from ("" for the root)."""

    digest: str
    size: int
    root: bool
    removed_in: tuple[str, ...]
    usage: Usage


class Changes(NamedTuple):
    """What turns ``left`` into ``right``. ``onto``: mounts that get it as well, while it is written."""

    left: Sequence[Mount]
    right: Sequence[Mount]
    onto: Sequence[Mount] = ()


class Created(NamedTuple):
    """A written layer: digest and size of the bytes in the file, and of the plain tar inside."""

    digest: str
    size: int
    diff_id: str
    plain_size: int


def _parts(mounts: Sequence[Mount]) -> list[list[Any]]:
    return [[m.type, m.source, m.target, list(m.options)] for m in mounts]


class LayerWorkers:
    """Runs apply and diff jobs. One instance per daemon; safe for many jobs at once on one loop."""

    def __init__(self, directory: str) -> None:
        """``directory``: a private place in the state directory for mount points."""
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._slots = asyncio.Semaphore(CONCURRENCY)

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Have the worker running. Idempotent; about 50 ms until it takes its first job."""
        if self.alive:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "containerd_py.diff.worker", self._directory],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        self._control = ours

    def close(self) -> None:
        """Let the worker end. Running jobs are finished first by its children."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    async def apply(
        self, mounts: Sequence[Mount], fd: int, *, sync: bool = False, progress: Callable[[int], None] | None = None
    ) -> Applied:
        """Unpack the layer blob open as ``fd`` into ``mounts``. ``progress`` is told of bytes read.

        Raises ``DataLoss`` (corrupt archive), ``InvalidArgument`` (what no layer may hold), ``ResourceExhausted``
        (disk full).
        """
        answer = await self._run({"op": "apply", "mounts": _parts(mounts), "sync": sync}, fd, progress)
        usage = Usage(*answer["usage"]) if "usage" in answer else None
        return Applied(answer["digest"], answer["size"], answer["entries"], usage)

    async def apply_alone(
        self, directory: str, fd: int, *, user_xattr: bool, progress: Callable[[int], None] | None = None
    ) -> Separated:
        """Unpack ``fd`` into ``directory``, an overlay's upper directory, without the layers below.

        Raises ``Aborted`` when the result would depend on those: apply in order then; and what ``apply`` raises.
        """
        mounts = [["bind", directory, "", ["rw", "rbind"]]]
        job = {"op": "apply", "mounts": mounts, "upper": "user" if user_xattr else "trusted"}
        answer = await self._run(job, fd, progress)
        removed, usage = tuple(answer["removed_in"]), Usage(*answer["usage"])
        return Separated(answer["digest"], answer["size"], answer["root"], removed, usage)

    async def diff(self, changes: Changes, fd: int, *, compression: str, epoch: int | None = None) -> Created:
        """Write the changes to ``fd``; ``compression`` is ``gzip``, ``zstd`` or ``""``. Raises as ``apply`` does."""
        sides = {side: _parts(mounts) for side, mounts in changes._asdict().items()}
        job = {"op": "diff", "compression": compression, "epoch": epoch, **sides}
        answer = await self._run(job, fd, None)
        return Created(answer["digest"], answer["size"], answer["diff_id"], answer["plain_size"])

    async def _run(self, job: dict[str, Any], fd: int, progress: Callable[[int], None] | None) -> dict[str, Any]:
        async with self._slots:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                ours.setblocking(False)
                with theirs:
                    self._send(json.dumps(job).encode(), (theirs.fileno(), fd))
                try:
                    return await _answer(ours, progress)
                except asyncio.CancelledError:
                    await asyncio.shield(asyncio.to_thread(_end, ours))
                    raise

    def _send(self, data: bytes, fds: tuple[int, int]) -> None:
        """Hand the job to the worker; a worker that died is replaced once."""
        for attempt in (1, 2):
            self.start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [data], fds)
                return
            except (BrokenPipeError, ConnectionError) as error:
                if attempt == 2:
                    raise Internal(
                        f"layer worker does not start: {error}", hint="see the log of containerd-py"
                    ) from error
                self.close()


def _end(ours: socket.socket) -> None:
    """Have the job's process end, and wait until it has: nothing is written into the target afterwards."""
    ours.settimeout(_END_GRACE)
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_WR)
        while ours.recv(_MAX_ANSWER):
            pass


async def _answer(ours: socket.socket, progress: Callable[[int], None] | None) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(ours, _MAX_ANSWER)
        if not data:
            raise Internal("layer worker ended without an answer (was it killed?)")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            error = from_code(answer["error"], answer["message"])
            error.hint = answer.get("hint", "")
            raise error
        if "progress" not in answer:
            return answer
        if progress is not None:
            progress(answer["progress"])
