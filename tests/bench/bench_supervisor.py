"""Memory of idle containers' shims, ours beside containerd's own, and containers per second, under one supervisor.

The same client then starts and stops containers at containerd-py with our shim and at the real containerd with its own,
each in a host of its own, in turn.

Run as root: ``python -m tests.bench.bench_supervisor [CONTAINERS]``. Exits 3 when a shim of ours takes more
than the product promises: 1.5 MB of PSS, 2 MB of USS (private pages), medians over all shims, from ``smaps_rollup``.
Idle daemons are measured each in a host of its own, with no container.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.bench.peers import Peer, dockerd, gantry, mount_tmpfs
from tests.bench.results import MISSED, Figure, Result, emit, figure
from tests.integration.tasks.supervisor import OWN_RUNTIME, Supervisor, supervisor
from tests.support.host import PrivateHost, is_at_rest, wait_for
from tests.support.images import busybox_rootfs

PSS_LIMIT, USS_LIMIT = 1.5e6, 2e6
GO_RUNTIME = "io.containerd.runc.v2"
AT_ONCE = 8
IDLE_SECONDS = 3.0
REST_SECONDS = 60.0
ROUNDS = 3
DAEMONS = {"gantry": ("engine.main", "containerd_py.main"), "docker.io": ("dockerd --host", "containerd --config")}
"""What of an engine's processes is its daemons: a part of their command lines."""
HELPERS = {"gantry": ("from shim.zygote",), "docker.io": ()}
"""What runs beside them without any container: our zygote, its spare, the keeper."""


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


def of_kind(name: str, pids: Iterable[int]) -> tuple[Figure, Figure]:
    """PSS and USS of every process of a kind."""
    found = [memory(pid) for pid in pids]
    return figure(name, [one.pss for one in found], 1e-6), figure(name, [one.uss for one in found], 1e-6)


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


def all_at_rest(shims: Callable[[], list[int]]) -> bool:
    return all(is_at_rest(pid) for pid in shims())


def lives(daemon: Supervisor, count: int) -> tuple[Figure, Figure]:
    """Containers of both shims: what each takes, and how fast they came; our PSS and USS.

    Ours are measured as they are when nothing happens, which is what idle means, and as they were at work.
    """
    kinds: dict[str, tuple[str, Callable[[], list[int]]]] = {
        "gantry": (OWN_RUNTIME, lambda: daemon.named("gantry-shim"))
    }
    if shutil.which("containerd-shim-runc-v2"):
        kinds["containerd"] = (GO_RUNTIME, lambda: daemon.host.pids_of("containerd-shim-runc-v2"))
    pss: list[Figure] = []
    uss: list[Figure] = []
    started: list[Figure] = []
    stopped: list[Figure] = []
    for name, (runtime, shims) in kinds.items():
        seconds = run(daemon, name, count, runtime)
        if runtime == OWN_RUNTIME:
            at_work = of_kind("gantry, at work", [pid for pid in shims() if not is_at_rest(pid)])
            wait_for(functools.partial(all_at_rest, shims), "all shims to be at rest", REST_SECONDS)
        of_pss, of_uss = of_kind(name, shims())
        pss.append(of_pss)
        uss.append(of_uss)
        started.append(figure(name, [count / seconds]))
        stopped.append(figure(name, [count / stop(daemon, name, count)]))
    what = f"at {count} containers, under the same supervisor"
    pss.append(at_work[0])
    uss.append(at_work[1])
    emit(Result("shim-pss", f"PSS of an idle container's shim {what}", "MB", tuple(pss), {"containerd": 0.2}))
    emit(Result("shim-uss", f"USS of an idle container's shim {what}", "MB", tuple(uss), {"containerd": 1.0}))
    for key, figures in (("started", started), ("stopped", stopped)):
        title = f"Containers {key} a second, {AT_ONCE} at a time, by shim"
        emit(Result(f"shim-{key}", title, "containers/s", tuple(figures), {"containerd": 1.0}, higher_is_better=True))
    return pss[0], uss[0]


class Ours(Supervisor):
    """containerd-py as it is started in earnest: without the debug messages that tests want."""

    name, runtime = "gantry", OWN_RUNTIME

    def command(self, *arguments: str) -> list[str]:
        return [word for word in super().command(*arguments) if word not in ("--log-level", "debug")]


class Theirs(Supervisor):
    """The real containerd, spoken to by the same client."""

    name, runtime = "containerd", GO_RUNTIME

    def command(self, *arguments: str) -> list[str]:
        config = self.host.base / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{self.root}"\nstate = "{self.state}"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.address}"\n'
        )
        return ["containerd", "-c", str(config)]

    def daemon_pid(self) -> int:
        return self.host.pids_of("containerd -c")[0]


@contextlib.contextmanager
def running(kind: type[Ours] | type[Theirs]) -> Iterator[Ours | Theirs]:
    """A daemon in a host of its own."""
    with PrivateHost() as host:
        mount_tmpfs(host, "/run")  # where the Go shims listen, whatever the daemon's own directories are
        daemon = kind(host, busybox_rootfs())
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.kill()


def beside_containerd(count: int) -> None:
    """Containers a second: both daemons with their own shims, in turn."""
    rates: dict[str, dict[str, list[float]]] = {"started": {}, "stopped": {}}
    with running(Ours) as ours, running(Theirs) as theirs:
        for round in range(ROUNDS + 1):
            for daemon in (ours, theirs):
                prefix = f"r{round}-"
                up = count / run(daemon, prefix, count, daemon.runtime)
                down = count / stop(daemon, prefix, count)
                if round:  # the first one warms up
                    rates["started"].setdefault(daemon.name, []).append(up)
                    rates["stopped"].setdefault(daemon.name, []).append(down)
    for key, found in rates.items():
        figures = tuple(figure(name, values) for name, values in found.items())
        title = f"{count} containers {key}, {AT_ONCE} at a time, at containerd-py and at containerd"
        result = Result(f"supervisor-{key}", title, "containers/s", figures, {"containerd": 1.0}, higher_is_better=True)
        emit(result)


def daemons() -> None:
    """Resident memory of both engines' daemons without containers."""
    with gantry() as ours, dockerd() as theirs:
        peers: tuple[Peer, ...] = (ours, theirs)
        for peer in peers:
            peer.docker("version")
        time.sleep(IDLE_SECONDS)
        figures = [figure(peer.name, [sum(memory(pid).rss for pid in _daemons(peer))], 1e-6) for peer in peers]
        share = [figure(peer.name, [sum(memory(pid).pss for pid in _everything(peer))], 1e-6) for peer in peers]
    title = "Resident memory of the idle daemons (engine and supervisor)"
    emit(Result("daemons-rss", title, "MB", tuple(figures), {"docker.io": 0.6}))
    title = "PSS of all that an idle engine keeps running, pages shared among them counted once"
    emit(Result("engine-pss", title, "MB", tuple(share), {"docker.io": 1.0}))


def _daemons(peer: Peer) -> list[int]:
    wanted = DAEMONS[peer.name]
    lines = peer.host.processes().items()
    found = [pid for pid, line in lines if any(word in line for word in wanted) and "nsenter" not in line]
    assert len(found) == len(wanted), f"{peer.name}: {found} of {dict(lines)}"
    return found


def _everything(peer: Peer) -> list[int]:
    """The daemons and their helpers."""
    words = HELPERS[peer.name]
    lines = peer.host.processes().items()
    return _daemons(peer) + [pid for pid, line in lines if any(word in line for word in words)]


def main() -> int:
    """See the module."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    count = numbers[0] if numbers else 100
    with supervisor(busybox_rootfs()) as daemon:
        daemon.host.check("mkdir", "-p", "/run/containerd")
        daemon.host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        pss, uss = lives(daemon, count)
        daemon.host.check("umount", "/run/containerd")
    if shutil.which("containerd"):
        beside_containerd(count)
    daemons()
    return MISSED if pss.median * 1e6 > PSS_LIMIT or uss.median * 1e6 > USS_LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
