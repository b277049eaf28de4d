"""Memory of idle containers' shims, ours beside containerd's own, and containers per second, under one supervisor.

The same client then starts and stops containers at containerd-py with our shim and at the real containerd with its own,
each in a host of its own, in turn.

Run as root: ``python -m tests.bench.bench_supervisor [ROUNDS [CONTAINERS]]``, by default 15 and 100. Exits 3 when a
shim of ours takes more than the product promises: 1.5 MB of PSS, 2 MB of USS (private pages), medians over all shims,
from ``smaps_rollup``.

Idle daemons are measured each in a host of its own, with no container.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
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


class Kind(NamedTuple):
    """A runtime, and how its shims are found."""

    runtime: str
    shims: Callable[[], list[int]]


def lives(daemon: Supervisor, rounds: int, count: int) -> tuple[Figure, Figure]:
    """Containers of both shims: what each takes, and how fast they come and go; our PSS and USS."""
    kinds = {"gantry": Kind(OWN_RUNTIME, lambda: daemon.named("gantry-shim"))}
    if shutil.which("containerd-shim-runc-v2"):
        kinds["containerd"] = Kind(GO_RUNTIME, lambda: daemon.host.pids_of("containerd-shim-runc-v2"))
    taken = _memory(daemon, kinds, count)
    rates: dict[str, dict[str, list[float]]] = {"started": {}, "stopped": {}}
    for round, (name, kind) in itertools.product(range(rounds), kinds.items()):
        seconds = run(daemon, f"{name}{round}-", count, kind.runtime)
        rates["started"].setdefault(name, []).append(count / seconds)
        rates["stopped"].setdefault(name, []).append(count / stop(daemon, f"{name}{round}-", count))
    for key, found in rates.items():
        title = f"Containers {key} a second, {AT_ONCE} at a time, by shim"
        _emit_rates(f"shim-{key}", title, found)
    return taken


def _memory(daemon: Supervisor, kinds: dict[str, Kind], count: int) -> tuple[Figure, Figure]:
    """Ours are measured as they are when nothing happens, which is what idle means, and as they were at work."""
    pss: list[Figure] = []
    uss: list[Figure] = []
    for name, (runtime, shims) in kinds.items():
        run(daemon, name, count, runtime)
        if runtime == OWN_RUNTIME:
            at_work = of_kind("gantry, at work", [pid for pid in shims() if not is_at_rest(pid)])
            wait_for(functools.partial(all_at_rest, shims), "all shims to be at rest", REST_SECONDS)
        of_pss, of_uss = of_kind(name, shims())
        pss.append(of_pss)
        uss.append(of_uss)
        stop(daemon, name, count)
    what = f"at {count} containers, under the same supervisor"
    ours = pss[0], uss[0]
    shown = (*pss, at_work[0])
    emit(Result("shim-pss", f"PSS of an idle container's shim {what}", "MB", shown, {"containerd": 0.2}))
    shown = (*uss, at_work[1])
    emit(Result("shim-uss", f"USS of an idle container's shim {what}", "MB", shown, {"containerd": 1.0}))
    return ours


def _emit_rates(key: str, title: str, found: dict[str, list[float]]) -> None:
    figures = tuple(figure(name, values) for name, values in found.items())
    emit(Result(key, title, "containers/s", figures, {"containerd": 1.0}, higher_is_better=True))


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


def beside_containerd(rounds: int, count: int) -> None:
    """Containers a second: both daemons with their own shims, in turn."""
    rates: dict[str, dict[str, list[float]]] = {"started": {}, "stopped": {}}
    with running(Ours) as ours, running(Theirs) as theirs:
        for round in range(rounds + 1):
            for daemon in (ours, theirs):
                prefix = f"r{round}-"
                up = count / run(daemon, prefix, count, daemon.runtime)
                down = count / stop(daemon, prefix, count)
                if round:  # the first one warms up
                    rates["started"].setdefault(daemon.name, []).append(up)
                    rates["stopped"].setdefault(daemon.name, []).append(down)
    for key, found in rates.items():
        title = f"{count} containers {key}, {AT_ONCE} at a time, at containerd-py and at containerd"
        _emit_rates(f"supervisor-{key}", title, found)


def daemons(rounds: int) -> None:
    """Resident memory of both engines' daemons without containers, fresh ones in every round."""
    resident: dict[str, list[int]] = {}
    shared: dict[str, list[int]] = {}
    for _ in range(rounds):
        with gantry() as ours, dockerd() as theirs:
            peers: tuple[Peer, ...] = (ours, theirs)
            for peer in peers:
                peer.docker("version")
            time.sleep(IDLE_SECONDS)
            for peer in peers:
                resident.setdefault(peer.name, []).append(sum(memory(pid).rss for pid in _daemons(peer)))
                shared.setdefault(peer.name, []).append(sum(memory(pid).pss for pid in _everything(peer)))
    figures = tuple(figure(name, values, 1e-6) for name, values in resident.items())
    title = "Resident memory of the idle daemons (engine and supervisor)"
    emit(Result("daemons-rss", title, "MB", figures, {"docker.io": 0.6}))
    figures = tuple(figure(name, values, 1e-6) for name, values in shared.items())
    title = "PSS of all that an idle engine keeps running, pages shared among them counted once"
    emit(Result("engine-pss", title, "MB", figures, {"docker.io": 1.0}))


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
    rounds, count = (*map(int, sys.argv[1:]), *(15, 100)[len(sys.argv) - 1 :])
    with supervisor(busybox_rootfs()) as daemon:
        daemon.host.check("mkdir", "-p", "/run/containerd")
        daemon.host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        pss, uss = lives(daemon, rounds, count)
        daemon.host.check("umount", "/run/containerd")
    if shutil.which("containerd"):
        beside_containerd(rounds, count)
    daemons(rounds)
    return MISSED if pss.median * 1e6 > PSS_LIMIT or uss.median * 1e6 > USS_LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
