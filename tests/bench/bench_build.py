"""Builds: the same Dockerfiles by Gantry, by docker.io's classic builder (same client) and by buildah.

Run as root: ``python -m tests.bench.bench_build [ROUNDS]``. Exits 3 when a goal is missed.
"""

from __future__ import annotations

import http.client
import io
import socket
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tests.bench.measure import figures, interleaved
from tests.bench.peers import Peer, dockerd, gantry
from tests.bench.results import MISSED, Result, emit, missed
from tests.support.engine import DOCKER
from tests.support.host import PrivateHost
from tests.support.images import busybox_rootfs

STEPS = 20
Build = Callable[[Path, bool], object]
"""Builds a context, from nothing when the second argument says so."""


class Context:
    """Twenty steps: a file is copied and a command run, ten times; ``touch`` changes one of the files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fresh = count()
        lines = [f"COPY f{n} /f{n}\nRUN cat /f{n} > /made{n}" for n in range(STEPS // 2)]
        (root / "Dockerfile").write_text("FROM busybox\n" + "\n".join(lines) + "\n")
        for number in range(STEPS // 2):
            self.touch(number)

    def touch(self, number: int) -> None:
        """Give one file a content it never had."""
        (self.root / f"f{number}").write_text(f"{number} {next(self._fresh)}\n")


def independent(root: Path) -> Path:
    """Four stages that do not need each other, and one that needs all."""
    stages = [f"FROM busybox AS s{n}\nRUN sleep 0.5; echo {n} > /out{n}" for n in range(4)]
    copies = [f"COPY --from=s{n} /out{n} /" for n in range(4)]
    (root / "Dockerfile").write_text("\n".join([*stages, "FROM busybox", *copies]) + "\n")
    return root


def through_docker(peer: Peer) -> Build:
    def build(context: Path, fresh: bool) -> object:
        words = ["env", "DOCKER_BUILDKIT=0", DOCKER, "-H", peer.url, "build", "-q"]
        return peer.host.check(*words, *(["--no-cache"] if fresh else []), str(context), timeout=300)

    return build


class _Engine(http.client.HTTPConnection):
    """A connection to a peer's socket, which may lie on a file system of its host alone."""

    def __init__(self, peer: Peer) -> None:
        super().__init__("engine", timeout=300)
        self._path = f"/proc/{peer.host.pid}/root{peer.url.removeprefix('unix://')}"

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def through_api(peer: Peer) -> Build:
    """The same request as the client's, without a client to start: what the engine itself takes."""

    def build(context: Path, fresh: bool) -> object:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(context, ".")
        engine = _Engine(peer)
        headers = {"Content-Type": "application/x-tar"}
        engine.request("POST", f"/build?version=1&nocache={int(fresh)}", packed.getvalue(), headers)
        answer = engine.getresponse().read()
        engine.close()
        assert b"Successfully built" in answer, answer[-500:]
        return answer

    return build


@contextmanager
def buildah() -> Iterator[Build]:
    """Debian's buildah in a private host of its own, with a busybox image.

    Its lightest isolation, as crun refuses to run on hybrid cgroups.
    """
    with PrivateHost() as host:
        storage = ["--root", str(host.data_root), "--runroot", str(host.exec_root), "--storage-driver", "overlay"]
        container = host.check("buildah", *storage, "from", "scratch").strip()
        (host.base / "busybox.tar").write_bytes(busybox_rootfs())
        host.check("buildah", *storage, "add", container, str(host.base / "busybox.tar"), "/")
        host.check("buildah", *storage, "commit", container, "localhost/busybox")

        def build(context: Path, fresh: bool) -> object:
            words = ["buildah", *storage, "build", "-q", "--layers", "--jobs", "2", "--isolation", "chroot"]
            words += ["--no-cache"] if fresh else []
            return host.check(*words, str(context), timeout=300)

        yield build


def main() -> int:
    """Measure; the status says whether every goal was met."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with gantry() as ours, dockerd() as theirs, buildah() as third, tempfile.TemporaryDirectory() as base:
        for peer in (ours, theirs):
            peer.docker("import", "-", "busybox:latest", stdin=busybox_rootfs())
        builders = {"gantry": through_docker(ours), "docker.io": through_docker(theirs), "buildah": third}
        engines = {"gantry": through_api(ours), "docker.io": through_api(theirs)}
        results = list(measured(builders, engines, Path(base), rounds))
    lines = [line for result in results for line in missed(result)]
    print("\n".join(lines))
    return MISSED if lines else 0


def measured(builders: dict[str, Build], engines: dict[str, Build], base: Path, rounds: int) -> Iterator[Result]:
    """Every measurement, emitted as it is known."""
    for name in ("steps", "stages"):
        (base / name).mkdir()
    steps, stages = Context(base / "steps"), independent(base / "stages")

    def row(
        key: str, title: str, work: Callable[[Build], object], goal: float | None, among: dict[str, Build] = builders
    ) -> Result:
        contenders = {name: (lambda build=build: work(build)) for name, build in among.items()}
        rows = interleaved(contenders, rounds, warmup=1)
        return emit(Result(f"build-{key}", title, "ms", figures(rows), {"docker.io": goal} if goal else {}))

    def changed(number: int) -> Callable[[Build], object]:
        def work(build: Build) -> object:
            steps.touch(number)
            return build(steps.root, False)

        return work

    yield row("cold", f"cold build of {STEPS} steps", lambda build: build(steps.root, True), 0.8)
    yield row("noop", f"no-op rebuild of {STEPS} steps", lambda build: build(steps.root, False), 0.5)
    yield row(
        "engine", f"no-op rebuild of {STEPS} steps, without a client", lambda b: b(steps.root, False), 0.5, engines
    )
    yield row("late", "one file changed late", changed(STEPS // 2 - 1), None)
    yield row("early", "one file changed early", changed(0), None)
    yield row("stages", "four independent stages", lambda build: build(stages, True), None)


if __name__ == "__main__":
    sys.exit(main())
