"""``docker run --rm busybox true``: the same docker CLI in front of Gantry, Debian's docker.io and podman's service.

Beside it each program's own command, and the other commands of a container's life. Run as root:
``python -m tests.bench.bench_run [ROUNDS]``. Exits 3 when Gantry is slower than docker.io.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable

from tests.bench.measure import Row, figures, interleaved
from tests.bench.peers import IMAGE, Dockerd, Gantry, Peer, Podman, dockerd, gantry, podman
from tests.bench.results import MISSED, Result, emit, figure
from tests.support.images import busybox_rootfs

NETWORKS = ("bridge", "none", "host")
GOALS = {"bridge": {"docker.io": 0.25, "podman": 0.5}}
STEPS = ("run -d", "exec true", "stop -t0", "rm")
_numbers = itertools.count()


def main() -> int:
    """Measure everything; the status says whether Gantry was faster than docker.io in every network mode."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with gantry() as ours, dockerd() as theirs, podman() as third:
        peers: tuple[Peer, ...] = (ours, theirs, third)
        for peer in peers:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", IMAGE, stdin=busybox_rootfs())
        slower = [network for network in NETWORKS if not _faster(peers, network, rounds)]
        _own_commands(ours, theirs, third, rounds)
        _life(peers, rounds)
        _peaks(peers)
    return MISSED if slower else 0


def _faster(peers: tuple[Peer, ...], network: str, rounds: int) -> bool:
    rows = interleaved({peer.name: _runner(peer, network) for peer in peers}, rounds)
    title = f"docker run --rm --network {network} busybox true"
    result = emit(Result(f"run-{network}", title, "ms", figures(rows), GOALS.get(network, {"docker.io": 1.0})))
    return (result.ratio("docker.io") or 0) < 1


def _runner(peer: Peer, network: str) -> Callable[[], object]:
    return lambda: peer.docker("run", "--rm", "--network", network, "busybox", "true")


def _own_commands(ours: Gantry, theirs: Dockerd, third: Podman, rounds: int) -> None:
    """The same container without a network, by the command that each program brings."""
    saved = subprocess.run(
        theirs.host.command("docker", "-H", theirs.url, "save", IMAGE), capture_output=True, check=True
    ).stdout
    theirs.host.check("ctr", "-a", theirs.containerd, "images", "import", "-", stdin=saved)

    def ctr() -> object:
        name = f"ctr{next(_numbers)}"
        return theirs.host.check("ctr", "-a", theirs.containerd, "run", "--rm", IMAGE, name, "true")

    contenders: dict[str, Callable[[], object]] = {
        "gantry run": lambda: ours.gantry("run", "--rm", "--network", "none", "busybox", "true"),
        "docker run (docker.io)": _runner(theirs, "none"),
        "podman run": lambda: third.podman("run", "--rm", "--network", "none", IMAGE, "true"),
        "ctr run (containerd)": ctr,
    }
    note = "podman with runc: its crun does not run on hosts that have cgroups of both versions."
    title = "run --rm --network none busybox true, by each program's own command"
    emit(Result("run-own", title, "ms", figures(interleaved(contenders, rounds)), {"podman run": 0.5}, note=note))


def _life(peers: tuple[Peer, ...], rounds: int) -> None:
    """``run -d``, ``exec``, ``stop`` and ``rm`` of one container after the other."""
    times: dict[str, dict[str, list[float]]] = {step: {peer.name: [] for peer in peers} for step in STEPS}
    for peer in [peer for _ in range(rounds) for peer in peers]:
        name = f"life{next(_numbers)}"
        commands = (
            ("run", "-d", "--name", name, "busybox", "sleep", "1000"),
            ("exec", name, "true"),
            ("stop", "-t", "0", name),
            ("rm", name),
        )
        for step, command in zip(STEPS, commands, strict=True):
            began = time.perf_counter()
            peer.docker(*command)
            times[step][peer.name].append(time.perf_counter() - began)
    for step, found in times.items():
        rows = [Row(name, tuple(values)) for name, values in found.items()]
        key = f"life-{step.partition(' ')[0]}"
        emit(Result(key, f"docker {step}", "ms", figures(rows), {"docker.io": 1.0}))


def _peaks(peers: tuple[Peer, ...]) -> None:
    """The most memory the daemons ever had, by the kernel's own account (proc(5), ``VmHWM``)."""
    found = tuple(figure(peer.name, [sum(map(_high_water, peer.daemons()))], 1e-6) for peer in peers)
    emit(Result("run-peak", "Peak resident memory of the daemons in all of these", "MB", found, {"docker.io": 1.0}))


def _high_water(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))


if __name__ == "__main__":
    sys.exit(main())
