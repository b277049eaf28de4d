"""The engine under many containers: the same requests to Gantry and to Debian's docker.io, in one run.

Run as root: ``python -m tests.bench.bench_engine [CONTAINERS [MEGABYTES [RUNNING]]]``, by default 1000, 1024 and 500; a
number of containers below 10 (``--quick``'s rounds) stands for 50, 32 and 20.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from tests.bench.measure import Row, figures, interleaved
from tests.bench.peers import Gantry, Peer, dockerd, gantry
from tests.bench.results import Result, emit, figure
from tests.support.host import wait_for
from tests.support.images import busybox_rootfs

ROUNDS = 7
REMOVED = 100
LINE = 100
"""Bytes of a line of log, its end included."""
LIVES = 1000
CREATE = '{"Image":"busybox","Cmd":["true"],"HostConfig":{"NetworkMode":"none"}}'


def main() -> int:
    """Print every table."""
    containers, megabytes, running = _sizes([int(word) for word in sys.argv[1:]])
    with gantry() as ours, dockerd() as theirs:
        peers: tuple[Peer, ...] = (ours, theirs)
        for peer in peers:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_rootfs())
        _logs(peers, megabytes)
        _events(peers, min(LIVES, containers))
        _once("create", f"create {containers} containers", peers, lambda peer: _create(peer, containers))
        _each("ps", f"ps --all with {containers} containers", peers, lambda peer: peer.docker("ps", "--all", "--quiet"))
        _once("rm", f"rm --force of {REMOVED}", peers, _remove)
        for peer in peers:
            peer.docker("container", "prune", "--force")
        _restored(ours, running)
    return 0


def _sizes(given: list[int]) -> tuple[int, int, int]:
    """(containers, megabytes of log, running containers)."""
    sizes = (50, 32, 20) if given and given[0] < 10 else (*given, *(1000, 1024, 500)[len(given) :])
    return sizes[0], sizes[1], sizes[2]


def _restored(engine: Gantry, running: int) -> None:
    """From the start of a new engine, after its predecessor was killed, until it lists every running container."""
    one = f"docker -H {engine.url} run -d --network none busybox sleep 100000 >/dev/null"
    engine.host.check("sh", "-ec", f"seq {running} | xargs -P 4 -n 1 sh -c '{one}'", timeout=900)
    seconds = []
    for _ in range(3):
        engine.kill("engine.main")
        began = time.perf_counter()
        engine.start(ready=lambda: _api(engine, "$engine http://e/containers/json || :").count('"Id"') == running)
        seconds.append(time.perf_counter() - began)
    rows = [Row("gantry", tuple(seconds))]
    emit(Result("engine-restored", f"back to {running} running containers after kill -9", "ms", figures(rows), {}))


def _each(name: str, title: str, peers: tuple[Peer, ...], work: Callable[[Peer], object]) -> None:
    """Interleaved rounds of ``work``."""
    rows = interleaved({peer.name: partial(work, peer) for peer in peers}, ROUNDS)
    emit(Result(f"engine-{name}", title, "ms", figures(rows), {"docker.io": 1.0}))


def _once(name: str, title: str, peers: tuple[Peer, ...], work: Callable[[Peer], object]) -> None:
    """One time each, for what cannot be repeated."""
    rows = []
    for peer in peers:
        began = time.perf_counter()
        work(peer)
        rows.append(Row(peer.name, (time.perf_counter() - began,)))
    emit(Result(f"engine-{name}", title, "ms", figures(rows), {"docker.io": 1.0}))


def _api(peer: Peer, script: str) -> str:
    """A shell script inside the peer's host; ``$engine`` is curl on its socket."""
    path = peer.url.removeprefix("unix://")
    return peer.host.check("sh", "-ec", f"engine='curl -s --unix-socket {path}'; {script}", timeout=1800)


def _create(peer: Peer, count: int) -> None:
    # One curl process with one connection: what is measured is the engine.
    request = f"-H 'Content-Type: application/json' -d '{CREATE}' http://e/containers/create"
    _api(peer, f"$engine {request} -o /dev/null $(yes 'http://e/containers/create -o /dev/null' | head -{count - 1})")


def _remove(peer: Peer) -> None:
    _api(peer, f"docker -H {peer.url} ps -aq -n {REMOVED} | xargs docker -H {peer.url} rm -f >/dev/null")


def _logs(peers: tuple[Peer, ...], megabytes: int) -> None:
    """A log of so many megabytes, written by nobody's leave, then followed; and as much to an attached client."""
    script = f"yes {'x' * (LINE - 1)} | head -c {megabytes << 20}"

    def read(peer: Peer, command: str) -> None:
        count = f"docker -H {peer.url} {command} | wc -c"
        wait_for(lambda: int(_api(peer, count)) >= megabytes << 20, "all of it", 1800)

    def written(peer: Peer) -> None:
        peer.docker("run", "--name", "talker", "--network", "none", "-d", "busybox", "sh", "-c", script)
        peer.docker("wait", "talker")

    attached = f"run --rm --network none busybox sh -c '{script}'"
    _rates("log-write", "log written", peers, megabytes, written)
    _rates("logs", "docker logs --follow", peers, megabytes, lambda peer: read(peer, "logs --follow talker"))
    _rates("attach", "output of an attached docker run", peers, megabytes, lambda peer: read(peer, attached))
    for peer in peers:
        peer.docker("rm", "talker")


def _rates(name: str, what: str, peers: tuple[Peer, ...], megabytes: int, work: Callable[[Peer], object]) -> None:
    """Megabytes a second of ``work``, once by each, and thousands of lines a second in the note."""
    found = []
    for peer in peers:
        began = time.perf_counter()
        work(peer)
        found.append((peer.name, megabytes * 1.048576 / (time.perf_counter() - began)))
    rates = tuple(figure(contender, [rate]) for contender, rate in found)
    lines = ", ".join(f"{contender} {rate / LINE * 1e3:.0f}" for contender, rate in found)
    note = f"Thousands of lines a second, {LINE} bytes each: {lines}."
    title = f"{what}, {megabytes} MB"
    emit(Result(f"engine-{name}", title, "MB/s", rates, {"docker.io": 1.0}, higher_is_better=True, note=note))


def _events(peers: tuple[Peer, ...], lives: int) -> None:
    """Container lives with somebody who listens: nothing may be missed."""

    def work(peer: Peer) -> None:
        script = f"""
            docker -H {peer.url} events --filter event=die --format x >$0 & listener=$!
            sleep 1
            seq {lives} | xargs -P 4 -I N docker -H {peer.url} run --rm --network none busybox true
            sleep 1; kill $listener; wc -l <$0; rm $0"""
        seen = int(peer.host.check("sh", "-ec", script, f"{peer.host.base}/events", timeout=1800))
        assert seen == lives, f"{peer.name}: {seen} of {lives} ends were told"

    _once("events", f"{lives} lives, 4 at a time, under docker events", peers, work)


if __name__ == "__main__":
    sys.exit(main())
