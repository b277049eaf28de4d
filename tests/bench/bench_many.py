"""Many containers through the API: started at once by eight clients, removed by force, and a daemon that comes back.

Run as root: ``python -m tests.bench.bench_many [ROUNDS [CONTAINERS]]``, by default 15 and 100. Each peer in turn, in a
private host.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.bench.client import Client, asked
from tests.bench.peers import IMAGE, Peer, dockerd, gantry, podman
from tests.bench.results import Result, emit, figure
from tests.support.images import busybox_rootfs

CLIENTS = 8
RESTART_SECONDS = 120.0


class Round(NamedTuple):
    """What was measured of one peer: containers a second, seconds of each start, seconds of the rest."""

    rate: float
    starts: list[float]
    removal: float
    restart: float | None


def main() -> int:
    """Print the tables."""
    rounds, count = (*map(int, sys.argv[1:]), *(15, 100)[len(sys.argv) - 1 :])
    found: dict[str, list[Round]] = {}
    with gantry() as ours, dockerd("--live-restore") as theirs, podman() as third:
        peers: tuple[Peer, ...] = (ours, theirs, third)
        for peer in peers:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", IMAGE, stdin=busybox_rootfs())
            _start(peer, CLIENTS)  # what is made once, is made
            _removed(peer)
        for peer in [peer for _ in range(rounds) for peer in peers]:
            found.setdefault(peer.name, []).append(_measured(peer, count, restarts=peer is not third))
    _report(count, found)
    return 0


def _measured(peer: Peer, count: int, *, restarts: bool) -> Round:
    began = time.perf_counter()
    starts = _start(peer, count)
    rate = count / (time.perf_counter() - began)
    restart = _restarted(peer, count) if restarts else None
    return Round(rate, starts, _removed(peer), restart)


def _start(peer: Peer, count: int) -> list[float]:
    """Create and start; seconds of each."""

    def one(_: int) -> float:
        client = Client(peer)
        began = time.perf_counter()
        made = client.call("POST", "/containers/create", asked("bridge", IMAGE, "sleep", "100000"))
        client.call("POST", f"/containers/{made['Id']}/start")
        took = time.perf_counter() - began
        client.close()
        return took

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(count)))


def _running(peer: Peer) -> list[str]:
    client = Client(peer)
    try:
        return [container["Id"] for container in client.call("GET", "/containers/json")]
    finally:
        client.close()


def _removed(peer: Peer) -> float:
    """Remove what runs, by force; seconds."""

    def one(container: str) -> None:
        client = Client(peer)
        client.call("DELETE", f"/containers/{container}?force=1")
        client.close()

    containers = _running(peer)
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, containers))
    return time.perf_counter() - began


def _restarted(peer: Peer, count: int) -> float:
    """Seconds from the order to end until the daemons that come after list all containers as running."""
    began = time.perf_counter()
    peer.restart()
    while time.perf_counter() - began < RESTART_SECONDS:
        with contextlib.suppress(OSError, AssertionError):
            if len(_running(peer)) == count:
                return time.perf_counter() - began
        time.sleep(0.005)
    raise AssertionError(f"{peer.name} did not come back with {count} containers in {RESTART_SECONDS:g} s")


def _report(count: int, found: dict[str, list[Round]]) -> None:
    def row(key: str, title: str, value: Callable[[Round], float | None]) -> None:
        values = {name: [v for v in map(value, rounds) if v is not None] for name, rounds in found.items()}
        shown = tuple(figure(name, seconds, 1e3) for name, seconds in values.items() if seconds)
        emit(Result(key, title, "ms", shown, {"docker.io": 1.0}))

    rates = tuple(figure(name, [one.rate for one in rounds]) for name, rounds in found.items())
    title = f"{count} containers started through the API by {CLIENTS} clients"
    emit(Result("many-rate", title, "containers/s", rates, {"docker.io": 0.2}, higher_is_better=True))
    row("many-p50", f"{title}: one start, median", lambda one: statistics.median(one.starts))
    row("many-p99", f"{title}: one start, 99th percentile", lambda one: statistics.quantiles(one.starts, n=100)[98])
    row("many-rm", f"rm --force of {count} running, {CLIENTS} at a time", lambda one: one.removal)
    row(
        "many-restart",
        f"daemon restart with {count} running (docker.io with --live-restore)",
        lambda one: one.restart,
    )


if __name__ == "__main__":
    sys.exit(main())
