"""What no engine can be faster than: fork, namespaces, mounts and exec alone. ``python -m tests.bench.limit [ROUNDS]``.

Run as root. Each line adds one thing that a container consists of to those above it, done by a small process that does
nothing else (its own start is not measured), with the fewest system calls that do it: milliseconds by the clock and of
CPU time, medians of the fastest quarter, as in the table of spans.

Rule: everything happens in namespaces of the forked process, so nothing of it is left.
"""

from __future__ import annotations

import ctypes
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.images import busybox_rootfs

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 26, 1 << 27, 1 << 29, 1 << 30
MS_REC, MS_PRIVATE, MNT_DETACH = 1 << 14, 1 << 18, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def _mount(source: bytes, target: bytes, kind: bytes, flags: int = 0, data: bytes = b"") -> None:
    _checked(_libc.mount(source, target, kind, flags, data), f"mount {target!r}")


def _root(place: Path) -> None:
    """An overlay as root, with the file systems that every container has."""
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work".encode()
    _mount(b"none", b"/", b"", MS_REC | MS_PRIVATE)
    merged = os.fsencode(place / "merged")
    _mount(b"overlay", merged, b"overlay", 0, options)
    for name, kind in ((b"proc", b"proc"), (b"sys", b"sysfs"), (b"dev", b"tmpfs")):
        _mount(kind, merged + b"/" + name, kind)
    os.makedirs(merged + b"/dev/pts")
    _mount(b"devpts", merged + b"/dev/pts", b"devpts", 0, b"newinstance")
    os.chdir(merged)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount")


class Taken(NamedTuple):
    """Milliseconds from the fork to the end of the program, and of CPU time."""

    clock: float
    cpu: float


def _timed(program: str, flags: int, prepare: Callable[[], None]) -> Taken:
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        try:
            _unshare(flags)
            inner = os.fork() if flags & CLONE_NEWPID else 0
            if inner == 0:
                prepare()
                os.execv(program, ["true"])
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
        finally:
            os._exit(127)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - began
    assert status == 0, f"the container ended with {os.waitstatus_to_exitcode(status)}"
    return Taken(took * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)


def measure(rounds: int) -> list[tuple[str, Taken]]:
    """What, and what it takes, of each step."""
    most = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    with tempfile.TemporaryDirectory(prefix="gantry-limit-") as directory:
        place = Path(directory)
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir()
        with tarfile.open(fileobj=io.BytesIO(busybox_rootfs())) as tar:
            tar.extractall(place / "lower", filter="fully_trusted")
        for name in ("proc", "sys", "dev"):
            (place / "lower" / name).mkdir(exist_ok=True)
        program = str(place / "lower/bin/true")
        steps: tuple[tuple[str, str, int, Callable[[], None]], ...] = (
            ("fork and exec", program, 0, lambda: None),
            ("… with mount, pid, ipc and uts namespaces", program, most, lambda: None),
            ("… and a network namespace", program, most | CLONE_NEWNET, lambda: None),
            ("… and a root: overlay, proc, sysfs, dev, pts", "/bin/true", most | CLONE_NEWNET, lambda: _root(place)),
        )  # fmt: skip
        times: dict[str, list[Taken]] = {name: [] for name, *_ in steps}
        for _ in range(rounds):
            for name, program, flags, prepare in steps:
                times[name].append(_timed(program, flags, prepare))

    def typical(values: Iterable[float]) -> float:
        return statistics.median(sorted(values)[: -(-rounds // 4)])

    return [
        (name, Taken(typical(one.clock for one in found), typical(one.cpu for one in found)))
        for name, found in times.items()
    ]


def shown(steps: list[tuple[str, Taken]]) -> str:
    """The table as text."""
    lines = [f"{name:<60}{taken.clock:>8.2f}{taken.cpu:>8.2f}" for name, taken in steps]
    return "\n".join([f"{'step':<60}{'ms':>8}{'CPU ms':>8}", *lines])


def main() -> int:
    """Print the table."""
    print(shown(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 51)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
