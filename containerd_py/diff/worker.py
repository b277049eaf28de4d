"""The layer worker: a small process that forks one child per layer; the child mounts, chroots, and reads or writes tar.

Rule: hostile input is handled only in the child, which has a private mount namespace, sees nothing but the target, and
ends with the layer. Standard library and decompressors only; single-threaded until it forks.

Protocol (``AF_UNIX``/``SOCK_SEQPACKET`` on fd 0): a JSON job with two descriptors, the job's own answer socket
(``SOCK_SEQPACKET``) and the data (blob to read, or file to write). The child answers ``{"progress": N}`` now and then
and at the end ``{"digest", "size", …}`` or ``{"error": code, "message"}``. It ends when its answer socket is closed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

from containerd_py.diff import apply, create, mounting, streams, twin, upper
from containerd_py.snapshots.usage import disk_usage
from oci import tar
from oci.errors import Aborted, Code, GantryError, Internal, InvalidArgument

_PROGRESS_STEP = 1 << 20
_MAX_JOB = 1 << 20
_MAX_PATHS = 16 << 10


class _Answers:
    """The job's answer socket."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._next = _PROGRESS_STEP

    def watch(self) -> None:
        """End this process as soon as nobody waits for its answer: what it writes into may be taken away then."""
        threading.Thread(target=self._wait_for_end, daemon=True).start()

    def _wait_for_end(self) -> None:
        while self._socket.recv(1):
            pass
        os._exit(1)

    def send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())

    def progress(self, done: int) -> None:
        if done >= self._next:
            self._next = done + _PROGRESS_STEP
            self.send({"progress": done})


def _blob_reader(fd: int, answers: _Answers) -> streams.Read:
    """Reads ``fd`` from its start without moving the shared file offset."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        data = os.pread(fd, size, at)
        at += len(data)
        answers.progress(at)
        return data

    return read


def _enter(mounts: list[list[Any]]) -> str:
    """Mount the target in a private mount namespace; returns the directory to work in."""
    mounting.private_namespace()
    if _is_directory(mounts):
        return str(mounts[0][1])
    return _mounted(mounts, "right")


def _is_directory(mounts: list[list[Any]]) -> bool:
    """Whether the target is one directory as it is, with nothing below it."""
    return len(mounts) == 1 and mounts[0][0] == "bind" and not mounts[0][2] and "ro" not in mounts[0][3]


def _mounted(mounts: list[list[Any]], side: str) -> str:
    """``mounts`` on a directory of the worker's own; it is empty again for everybody else."""
    target = os.path.abspath(side)
    os.makedirs(target, mode=0o700, exist_ok=True)
    mounting.mount_all(mounts, target)
    return target


def apply_layer(job: dict[str, Any], fd: int, answers: _Answers) -> dict[str, Any]:
    """Unpack the layer ``fd`` into the mounts; digest and size of the plain tar."""
    answers.watch()
    # Load what is loaded lazily while the host's files can still be seen.
    head = os.pread(fd, 6, 0)
    plain, _ = streams.decompressed(_blob_reader(fd, answers))
    _enter_as_root(job["mounts"])
    hashing = streams.HashingReader(plain)
    applier = _applier(job)
    if head:
        _apply_all(tar.TarReader(hashing.read), applier)
    applier.finish()
    digest = hashing.finish()
    if job.get("sync"):
        mounting.sync_file_system("/")
    answer: dict[str, Any] = {"digest": digest, "size": hashing.size, "entries": applier.entries}
    if _is_directory(job["mounts"]):
        answer["usage"] = disk_usage("/")
    if isinstance(applier, upper.UpperApplier):
        answer |= {"root": applier.has_root, "removed_in": _parents(applier.removed)}
    return answer


def _enter_as_root(mounts: list[list[Any]]) -> None:
    """See nothing but the target from now on."""
    os.chroot(_enter(mounts))
    os.chdir("/")
    os.umask(0)


def _apply_all(reader: tar.TarReader, applier: apply.Applier) -> None:
    for entry in reader:
        try:
            applier.apply(reader, entry)
        except OSError as error:
            raise _explained(error, entry.name) from error
        except (OverflowError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"archive member {entry.name!r} cannot be written: {error}") from error


def _applier(job: dict[str, Any]) -> apply.Applier:
    chown = os.geteuid() == 0
    if "upper" in job:
        return upper.UpperApplier(user_xattr=job["upper"] == "user", chown=chown)
    return apply.Applier(chown=chown)


def _parents(paths: set[str]) -> list[str]:
    """Directories of ``paths``. Raises ``Aborted`` for more than an answer holds."""
    found = sorted({path.rpartition("/")[0] for path in paths})
    if sum(map(len, found)) > _MAX_PATHS:
        raise Aborted("layer removes files in too many directories")
    return found


def _explained(error: OSError, name: str) -> GantryError:
    kind = {28: Code.RESOURCE_EXHAUSTED, 122: Code.RESOURCE_EXHAUSTED, 13: Code.PERMISSION_DENIED}.get(error.errno or 0)
    hint = "free some space or prune images" if kind is Code.RESOURCE_EXHAUSTED else ""
    failure = GantryError(f"cannot write {name!r} of the layer: {error.strerror}", hint=hint)
    failure.code = kind or Code.INTERNAL
    return failure


def diff_layer(job: dict[str, Any], fd: int, answers: _Answers) -> dict[str, Any]:
    """Write the changes from ``left`` to ``right`` mounts as a tar to ``fd``; digests of plain and written bytes.

    They are applied to the mounts ``onto`` at the same time, where there are any.
    """
    onto = twin.Twin(lambda: _enter_as_root(job["onto"]), _apply_plain) if job["onto"] else None
    answers.watch()
    writer = create.DigestingWriter(fd, job["compression"], *([onto.write] if onto else []))
    epoch = job.get("epoch")
    mounting.private_namespace()
    changed = create.upper_of(job["left"], job["right"])
    # A container may be running in there and swap a directory for a link at any moment: a chroot contains it.
    if changed is not None:
        os.chroot(changed)
        os.chdir("/")
        create.write_upper("/", writer, epoch)
    else:
        for side in ("left", "right"):
            _mounted(job[side], side)
        os.chroot(".")
        create.write_changes("/left", "/right", writer, epoch)
    made = writer.finish()
    if onto is not None:
        onto.finish()
    return made


def _apply_plain(read: tar.Read) -> None:
    """What the other process of ``diff_layer`` does with the archive."""
    applier = apply.Applier(chown=os.geteuid() == 0)
    _apply_all(tar.TarReader(read), applier)
    applier.finish()


_JOBS = {"apply": apply_layer, "diff": diff_layer}


def _child(job: dict[str, Any], answer_fd: int, data_fd: int) -> None:
    """Run one job to its answer. Never returns."""
    answers = _Answers(answer_fd)
    try:
        result = _JOBS[job["op"]](job, data_fd, answers)
    except BrokenPipeError:
        os._exit(1)
    except GantryError as error:
        result = twin.failure(error)
    except Exception as error:  # the answer is the only way out of this process
        result = twin.failure(Internal(f"layer worker: {type(error).__name__}: {error}"))
    try:
        answers.send(result)
    finally:
        os._exit(0)


def _reap(_number: int, _frame: FrameType | None) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def serve(control: socket.socket) -> None:
    """Take jobs until the other end closes."""
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        data, fds, _flags, _ = socket.recv_fds(control, _MAX_JOB, 2)
        if not data:
            return
        if len(fds) == 2 and os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            os.dup2(fds[0], 0)  # frees the parent's control descriptor
            _child(json.loads(data), fds[0], fds[1])
        for fd in fds:
            os.close(fd)


def main() -> int:
    """Entry of ``python -m containerd_py.diff.worker DIRECTORY``: the directory holds its mount points."""
    os.makedirs(sys.argv[1], mode=0o700, exist_ok=True)
    os.chdir(sys.argv[1])
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    import gc

    from isal import igzip_lib, isal_zlib  # noqa: F401 # warm: children inherit it, and cannot import in a chroot

    gc.freeze()
    serve(control)
    return 0


if __name__ == "__main__":
    sys.exit(main())
