"""Pull and unpack, save, push, load and commit of a large image: Gantry, Debian's docker.io and podman, interleaved.

Rule: in every round each engine starts from nothing in a private host of its own and nothing is deleted before the end,
since ext4 looks long for an inode that was not freed within the last minutes: that takes 15 GB a round. Registries and
image are the same for all.

Run as root: ``python -m tests.bench.bench_images [ROUNDS]``. Exits 3 when a pull takes more than 0.8 of docker.io's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.image_of_packages import Facts, limit, make
from tests.bench.measure import Row, figures
from tests.bench.peers import Dockerd, Gantry
from tests.bench.results import MISSED, Result, emit
from tests.support.engine import DOCKER
from tests.support.host import PrivateHost
from tests.support.registry import running_registry

SOURCE, TARGET = "127.0.0.1:5000", "127.0.0.1:5001"
NAME = "bench/image:v1"
GOAL = 0.8
STEPS = {
    "pull": "pull of a large image",
    "save": "save of a large image",
    "push": "push of a large image",
    "load": "load of a large image",
    "commit": "commit of a container that has written all of a large image's files anew",
    "commit-little": "commit of a container that has written one file, on a large image",
}
CHANGES = {"commit": "cp -a /usr /copy", "commit-little": "echo new >/usr/new"}
"""What a container does before it is committed."""


class Client(NamedTuple):
    """How an engine in ``host`` is spoken to: ``command`` before the arguments that docker's client takes."""

    host: PrivateHost
    command: tuple[str, ...]
    podman: bool = False

    def __call__(self, *arguments: str) -> None:
        plain = ("--tls-verify=false",) if self.podman and arguments[0] in ("pull", "push") else ()
        self.host.check(*self.command, arguments[0], *plain, *arguments[1:], timeout=900)


@contextlib.contextmanager
def client(kind: str, host: PrivateHost) -> Iterator[Client]:
    """A fresh engine in ``host``; what it stored stays there."""
    if kind == "podman":
        roots = ("--root", f"{host.data_root}/podman", "--runroot", f"{host.exec_root}/podman")
        options = ("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc")
        yield Client(host, ("podman", *roots, *options), podman=True)
    elif kind == "gantry":
        ours = Gantry(host)
        ours.start()
        try:
            yield Client(host, (DOCKER, "-H", ours.url))
        finally:
            ours.host.check(sys.executable, "-m", "cli.main", "-H", ours.url, "down")
    else:
        theirs = Dockerd(host)
        try:
            yield Client(host, (DOCKER, "-H", theirs.url))
        finally:
            theirs.stop()


def timed(work: Callable[[], object]) -> float:
    """Seconds of ``work``, after what others wrote is on disk."""
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def round_of(kind: str, storage: Path, hosts: contextlib.ExitStack) -> dict[str, float]:
    """Seconds of each step with engines of one kind that know nothing yet."""
    times = {}
    source, target = f"{SOURCE}/{NAME}", f"{TARGET}/{NAME}"
    host = hosts.enter_context(PrivateHost())
    archive = str(host.base / "saved.tar")
    with (
        running_registry(host.base / "source", host=host, address=SOURCE, storage=storage),
        running_registry(host.base / "target", host=host, address=TARGET),
        client(kind, host) as call,
    ):
        times["pull"] = timed(lambda: call("pull", source))
        times["save"] = timed(lambda: call("save", "-o", archive, source))
        call("tag", source, target)
        times["push"] = timed(lambda: call("push", target))
        for step, change in CHANGES.items():
            call("run", "--name", step, "--network", "none", source, "sh", "-ec", change)
            times[step] = timed(lambda step=step: call("commit", step, f"bench/{step}"))  # type: ignore[misc] # bound
    with client(kind, hosts.enter_context(PrivateHost())) as call:
        times["load"] = timed(lambda: call("load", "-i", archive))
    return times


def served(facts: Facts, base: Path) -> Path:
    """Storage of a registry that has the image."""
    storage = base / "storage"
    with PrivateHost() as host, running_registry(base / "filling", host=host, address=SOURCE, storage=storage):
        host.check(
            "skopeo", "copy", "--dest-tls-verify=false", f"oci:{facts.layout}:bench", f"docker://{SOURCE}/{NAME}",
            timeout=600,
        )  # fmt: skip
    return storage


def main() -> int:
    """Measure all; the status says whether pulls are as fast as they should be."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    base = Path(tempfile.mkdtemp(prefix="gantry-bench-"))
    hosts = contextlib.ExitStack()
    try:
        facts = make(base / "image")
        print(f"image: {facts}", flush=True)
        storage = served(facts, base)
        times: dict[str, dict[str, list[float]]] = {step: {} for step in STEPS}
        for _ in range(rounds):
            for kind in ("gantry", "podman", "docker.io"):
                for step, seconds in round_of(kind, storage, hosts).items():
                    times[step].setdefault(kind, []).append(seconds)
        rows = {step: [Row(kind, tuple(values)) for kind, values in times[step].items()] for step in STEPS}
        alone = f"{facts}. Limit of a pull: sha256 and decompression alone take {limit(facts.layout) * 1e3:.0f} ms."
        for step, title in STEPS.items():
            goals = {"docker.io": GOAL} if step == "pull" else {"docker.io": 1.0}
            note = alone if step == "pull" else ""
            emit(Result(f"images-{step}", title, "ms", figures(rows[step]), goals, note=note))
        return 0 if rows["pull"][0].median <= GOAL * rows["pull"][-1].median else MISSED
    finally:
        hosts.close()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
