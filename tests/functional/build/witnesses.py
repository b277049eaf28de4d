"""The real builders beside ours: Debian's dockerd with its classic builder and its BuildKit.

Rule: one daemon serves both. Where trixie's docker and buildx were fetched (``tests/install-newer-peers``), they are
taken, as they know the language up to 1.7; bookworm's know it up to 1.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.bench.peers import Dockerd
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
