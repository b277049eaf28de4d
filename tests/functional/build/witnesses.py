"""The real builders beside ours: Debian's dockerd with its classic builder and its BuildKit, and buildah.

Rule: one daemon serves both. Where trixie's docker and buildx were fetched (``tests/install-newer-peers``), they are
taken, as they know the language up to 1.7; bookworm's know it up to 1.2.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.bench.peers import Dockerd
from tests.functional.build.cases import Case
from tests.functional.build.flattened import Image, images
from tests.support.engine import DOCKER
from tests.support.host import PrivateHost
from tests.support.newer import NEWER

OLD_CLIENT = "/usr/bin/docker"
"""Bookworm's client has BuildKit's inside."""


def newer() -> bool:
    """Whether the newer peers are here."""
    return (NEWER / "usr/sbin/dockerd").exists()


class NewerHost(PrivateHost):
    """A private host where the newer peers come first."""

    def environment(self) -> dict[str, str]:
        env = super().environment()
        env["PATH"] = f"{NEWER}/usr/sbin:{NEWER}/usr/bin:{env['PATH']}"
        return env

    def __enter__(self) -> PrivateHost:
        super().__enter__()
        plugins = self.base / ".docker/cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-buildx").symlink_to(NEWER / "usr/libexec/docker/cli-plugins/docker-buildx")
        return self


@contextlib.contextmanager
def witness() -> Iterator[Dockerd]:
    """The daemon, running."""
    with NewerHost() if newer() else PrivateHost() as host:
        daemon = Dockerd(host)
        try:
            yield daemon
        finally:
            daemon.stop()


def build_command(daemon: Dockerd, builder: str) -> list[str]:
    """The beginning of a build's command line, for ``builder``."""
    kit = builder != "classic"
    client = DOCKER if newer() or not kit else OLD_CLIENT
    return ["env", f"DOCKER_BUILDKIT={int(kit)}", client, "-H", daemon.url, "build"]


BUILDAH_LACKS = {
    "ADD --checksum": "add-url-checksum",
    "symbolic modes": "copy-chmod-symbolic",
    "--exclude": "copy-exclude",
    "here-documents": "copy-heredoc copy-heredoc-modes run-heredoc run-heredoc-unfinished",
    "--link": "copy-link",
    "--parents": "copy-parents",
    "expansion operators": "expansion-operators expansion-required",
    "sharing=private": "run-mount-cache-modes",
    "RUN --network": "run-network-host-chosen run-network-host-refused run-network-none",
    "RUN --security": "run-security-refused",
}
"""What bookworm's buildah (1.28) does not know, and the cases that are about it."""


BUILDAH_LEAVES = (
    "/etc",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/run",
    "/run/secrets",
    "/dev",
    "/proc",
    "/sys",
)
"""Mount points that a RUN of it leaves behind."""


class Buildah:
    """buildah in a private host: one more reader of what docker's classic builder cannot read.

    Its lightest isolation, as crun refuses to run on hybrid cgroups.
    """

    def __init__(self, host: PrivateHost, busybox: bytes) -> None:
        self.host = host
        self._words = [
            "buildah", "--root", str(host.data_root), "--runroot", str(host.exec_root), "--storage-driver", "overlay",
        ]  # fmt: skip
        (host.base / "busybox.tar").write_bytes(busybox)
        container = host.check(*self._words, "from", "scratch").strip()
        host.check(*self._words, "add", container, str(host.base / "busybox.tar"), "/")
        host.check(*self._words, "config", "--cmd", "sh", container)
        host.check(*self._words, "commit", container, "docker.io/library/busybox")

    def build(self, case: Case, context: Path) -> subprocess.CompletedProcess[str]:
        """Build one case."""
        words = ["build", "--layers", "--isolation", "chroot", "--format", "docker", "--pull=never", *case.args]
        return self.host.run(*self._words, *words, "-t", f"localhost/{case.name}", str(context), timeout=120)

    def image(self, case: Case) -> Image:
        """What was built."""
        archive = self.host.base / f"{case.name}.tar"
        self.host.check(
            *self._words, "push", f"localhost/{case.name}", f"docker-archive:{archive}:{case.name}:latest", timeout=120
        )
        (image,) = images(archive).values()
        archive.unlink()
        labels = {name: text for name, text in image.config.pop("Labels").items() if name != "io.buildah.version"}
        return image._replace(config={**image.config, "Labels": labels} if labels else image.config)


def buildah_knows(case: Case) -> bool:
    """Whether it can read the case, and the classic builder cannot."""
    lacking = {name for names in BUILDAH_LACKS.values() for name in names.split()}
    return case.builder != "classic" and case.name not in lacking
