"""Memory of idle containers' shims, ours beside containerd's own, and containers per second, under one supervisor.

Run as root: ``python -m tests.bench.bench_supervisor [CONTAINERS]``. Exits 1 when a shim of ours takes more
than the product promises: 1.5 MB of PSS, 2 MB of USS (private pages), means over all shims, from ``smaps_rollup``.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.integration.tasks.supervisor import OWN_RUNTIME, Supervisor, supervisor
from tests.support.images import busybox_rootfs

PSS_LIMIT, USS_LIMIT = 1.5e6, 2e6
GO_RUNTIME = "io.containerd.runc.v2"
AT_ONCE = 8


class Memory(NamedTuple):
    """Bytes of one process."""

    pss: int
    uss: int
    rss: int


def memory(pid: int) -> Memory:
    """From ``/proc/<pid>/smaps_rollup`` (proc(5)); its kB are KiB."""
    values: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        values[name] = int(amount) * 1024
    return Memory(values["Pss:"], values["Private_Clean:"] + values["Private_Dirty:"], values["Rss:"])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(name: str, pids: Iterable[int]) -> Memory:
    """Print and return the means."""
    found = [memory(pid) for pid in pids]
    mean = Memory(*(int(statistics.fmean(column)) for column in zip(*found, strict=True)))
    worst = max(one.uss for one in found)
    say(
        f"{name:<28}{len(found):>4} × PSS {mean.pss / 1e6:6.2f} MB, USS {mean.uss / 1e6:6.2f} MB "
        f"(most {worst / 1e6:.2f}), RSS {mean.rss / 1e6:6.2f} MB"
    )
    return mean


def run(daemon: Supervisor, prefix: str, count: int, runtime: str) -> float:
    """Start ``count`` sleeping containers as fast as the API lets; seconds."""

    def one(number: int) -> None:
        daemon.create(f"{prefix}{number}", "sleep", "1000", runtime=runtime)
        daemon.start_task(f"{prefix}{number}")

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(count)))
    return time.perf_counter() - began


def stop(daemon: Supervisor, prefix: str, count: int) -> float:
    """Kill and delete them; seconds."""

    def one(number: int) -> None:
        daemon.signal(f"{prefix}{number}", 9)
        daemon.wait(f"{prefix}{number}")
        daemon.delete(f"{prefix}{number}")

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(count)))
    return time.perf_counter() - began


def main() -> int:
    """See the module."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    count = numbers[0] if numbers else 100
    with supervisor(busybox_rootfs()) as daemon:
        daemon.host.check("mkdir", "-p", "/run/containerd")
        daemon.host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        started = run(daemon, "own", count, OWN_RUNTIME)
        mean = table("containerd-shim-py-v2", daemon.named("gantry-shim"))
        table("containerd-py", [daemon.daemon_pid()])
        table("zygote and keeper", daemon.named("gantry-zygote") + daemon.named("gantry-keeper"))
        stopped = stop(daemon, "own", count)
        say(f"ours: {count / started:.1f} containers started and {count / stopped:.1f} stopped a second")
        if shutil.which("containerd-shim-runc-v2"):
            started = run(daemon, "go", count, GO_RUNTIME)
            table("containerd-shim-runc-v2", daemon.host.pids_of("containerd-shim-runc-v2"))
            stopped = stop(daemon, "go", count)
            say(f"Go shim: {count / started:.1f} containers started and {count / stopped:.1f} stopped a second")
        daemon.host.check("umount", "/run/containerd")
    return 1 if mean.pss > PSS_LIMIT or mean.uss > USS_LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
