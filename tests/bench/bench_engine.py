"""The engine under many containers: the same requests to Gantry and to Debian's docker.io, in turn.

Run as root: ``python -m tests.bench.bench_engine [ROUNDS [MEGABYTES [RUNNING]]]``, by default 15, 128 and 500; fewer
than 10 rounds (``--quick``) stand for 32 megabytes and 20 running containers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.measure import Row, figures, interleaved
from tests.bench.peers import Gantry, Peer, dockerd, gantry
from tests.bench.results import Result, emit, figure
from tests.support.engine import DOCKER
from tests.support.host import wait_for
from tests.support.images import busybox_rootfs

BATCH = 100
"""Containers that are created, or removed, at once."""
LINE = 100
"""Bytes of a line of log, its end included."""
LIVES = 70
CREATE = '{"Image":"busybox","Cmd":["true"],"HostConfig":{"NetworkMode":"none"}}'
Work = Callable[[Peer], object]


def main() -> int:
    """Print every table."""
    rounds, megabytes, running = _sizes([int(word) for word in sys.argv[1:]])
    with gantry() as ours, dockerd() as theirs:
        peers: tuple[Peer, ...] = (ours, theirs)
        for peer in peers:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_rootfs())
        _logs(peers, megabytes, rounds)
        _events(peers, rounds)
        _many(peers, rounds)
        for peer in peers:
            peer.docker("container", "prune", "--force")
        _restored(ours, running, max(3, rounds // 3))
    return 0


def _sizes(given: list[int]) -> tuple[int, int, int]:
    """(rounds, megabytes of log, running containers)."""
    sizes = (given[0], 32, 20) if given and given[0] < 10 else (*given, *(15, 128, 500)[len(given) :])
    return sizes[0], sizes[1], sizes[2]


def _many(peers: tuple[Peer, ...], rounds: int) -> None:
    """Create one batch a round, list two thirds of all, remove what is left batch by batch."""
    most, left = BATCH * rounds, BATCH * (rounds * 2 // 3)
    create = _in_turn(peers, rounds, lambda peer: _create(peer, BATCH))
    remove = _in_turn(peers, (most - left) // BATCH, _remove)
    listed = _in_turn(peers, rounds, lambda peer: peer.docker("ps", "--all", "--quiet"))
    more = _in_turn(peers, left // BATCH, _remove)
    remove = {name: seconds + more[name] for name, seconds in remove.items()}
    _row("create", f"create {BATCH} containers, {most} in the end", create)
    _row("ps", f"ps --all with {left} containers", listed)
    _row("rm", f"rm --force of {BATCH}, {most} in the beginning", remove)


def _restored(engine: Gantry, running: int, rounds: int) -> None:
    """From the start of a new engine, after its predecessor was killed, until it lists every running container."""
    one = f"docker -H {engine.url} run -d --network none busybox sleep 100000 >/dev/null"
    engine.host.check("sh", "-ec", f"seq {running} | xargs -P 4 -n 1 sh -c '{one}'", timeout=900)
    seconds = []
    for _ in range(rounds):
        engine.kill("engine.main")
        began = time.perf_counter()
        engine.start(ready=lambda: _api(engine, "$engine http://e/containers/json || :").count('"Id"') == running)
        seconds.append(time.perf_counter() - began)
    rows = [Row("gantry", tuple(seconds))]
    emit(Result("engine-restored", f"back to {running} running containers after kill -9", "ms", figures(rows), {}))


def _in_turn(peers: tuple[Peer, ...], rounds: int, work: Work) -> dict[str, list[float]]:
    """Seconds of ``work`` in each round, by peer; every one counts, as what is made or removed stays so."""
    rows = interleaved({peer.name: partial(work, peer) for peer in peers}, rounds, warmup=0)
    return {row.name: list(row.times) for row in rows}


def _row(name: str, title: str, seconds: dict[str, list[float]]) -> None:
    rows = [Row(peer, tuple(times)) for peer, times in seconds.items()]
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
    _api(peer, f"docker -H {peer.url} ps -aq -n {BATCH} | xargs docker -H {peer.url} rm -f >/dev/null")


def _logs(peers: tuple[Peer, ...], megabytes: int, rounds: int) -> None:
    """A log of so many megabytes, written by nobody's leave, then followed; and as much to an attached client."""
    script = f"yes {'x' * (LINE - 1)} | head -c {megabytes << 20}"

    def read(peer: Peer, command: str) -> None:
        count = f"docker -H {peer.url} {command} | wc -c"
        wait_for(lambda: int(_api(peer, count)) >= megabytes << 20, "all of it", 1800)

    def written(peer: Peer) -> None:
        peer.docker("rm", "--force", "talker")
        peer.docker("run", "--name", "talker", "--network", "none", "-d", "busybox", "sh", "-c", script)
        peer.docker("wait", "talker")

    attached = f"run --rm --network none busybox sh -c '{script}'"
    works: dict[str, tuple[str, Work]] = {
        "log-write": ("log written", written),
        "logs": ("docker logs --follow", lambda peer: read(peer, "logs --follow talker")),
        "attach": ("output of an attached docker run", lambda peer: read(peer, attached)),
    }
    for name, (what, work) in works.items():
        _rates(name, f"{what}, {megabytes} MB", megabytes, _in_turn(peers, rounds, work))
    for peer in peers:
        peer.docker("rm", "talker")


def _rates(name: str, title: str, megabytes: int, seconds: dict[str, list[float]]) -> None:
    """Megabytes a second, and thousands of lines a second in the note."""
    rates = tuple(figure(peer, [megabytes * 1.048576 / one for one in times]) for peer, times in seconds.items())
    lines = ", ".join(f"{rate.name} {rate.median / LINE * 1e3:.0f}" for rate in rates)
    note = f"Thousands of lines a second, {LINE} bytes each: {lines}."
    emit(Result(f"engine-{name}", title, "MB/s", rates, {"docker.io": 1.0}, higher_is_better=True, note=note))


def _events(peers: tuple[Peer, ...], rounds: int) -> None:
    """Container lives with somebody who listens: nothing may be missed."""
    listening = ("events", "--filter", "event=die", "--format", "x")
    with contextlib.ExitStack() as stack:
        ends: dict[str, Path] = {}
        for peer in peers:
            ends[peer.name] = peer.host.base / "ends"
            file = stack.enter_context(open(ends[peer.name], "wb"))
            peer.host.popen(DOCKER, "-H", peer.url, *listening, stdout=file)
            stack.callback(_end, peer, " ".join(listening))
        time.sleep(1)  # until they listen

        def work(peer: Peer) -> None:
            run = f"docker -H {peer.url} run --rm --network none busybox true"
            peer.host.check("sh", "-ec", f"seq {LIVES} | xargs -P 4 -I N {run}", timeout=1800)

        seconds = _in_turn(peers, rounds, work)
        for name, path in ends.items():
            told = lambda path=path: path.read_bytes().count(b"\n") == rounds * LIVES  # noqa: E731 - bound at once
            wait_for(told, f"{name} to tell of {rounds * LIVES} ends", 30)
    _row("events", f"{LIVES} lives, 4 at a time, under docker events", seconds)


def _end(peer: Peer, command: str) -> None:
    for pid in peer.host.pids_of(command):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
