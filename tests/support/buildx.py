"""The docker CLI with the buildx plugin of a newer release, in front of an engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.engine import DOCKER, Engine
from tests.support.newer import MISSING, newer_program

PLUGIN = newer_program("usr/libexec/docker/cli-plugins/docker-buildx")
MISSING_BUILDX = f"the buildx plugin is {MISSING}"


class Buildx:
    """``docker build`` in a directory of its own: ``context`` below ``root`` is where it runs."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self.engine = engine
        self.context = root / "context"
        self.config = root / "config"
        plugins = self.config / "cli-plugins"
        plugins.mkdir(parents=True)
        assert PLUGIN is not None
        (plugins / "docker-buildx").symlink_to(PLUGIN)

    @staticmethod
    def there() -> bool:
        """Whether the plugin was fetched."""
        return PLUGIN is not None

    def write(self, name: str, text: str) -> Path:
        """A file of the context."""
        path = self.context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def command(self, *arguments: str, environment: dict[str, str] | None = None) -> list[str]:
        """A docker command line with the plugin."""
        settings = {"DOCKER_CONFIG": str(self.config), "DOCKER_HOST": self.engine.url, **(environment or {})}
        program = ["env", "-C", str(self.context), *(f"{name}={value}" for name, value in settings.items())]
        return [*program, DOCKER, *arguments]

    def run(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        environment: dict[str, str] | None = None,
        timeout: float = 180,
    ) -> subprocess.CompletedProcess[str]:
        """Any docker command."""
        return self.engine.host.run(*self.command(*arguments, environment=environment), stdin=stdin, timeout=timeout)

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> str:
        """``docker build`` with plain progress, which must work; what it told."""
        done = self.run("build", "--progress", "plain", *arguments, stdin=stdin)
        assert done.returncode == 0, f"docker build {arguments}: {done.stdout}{done.stderr}{self.engine.log_text()}"
        return done.stderr

    def fails(self, *arguments: str) -> str:
        """``docker build`` that must not work; what it told."""
        done = self.run("build", "--progress", "plain", *arguments)
        assert done.returncode == 1, f"docker build {arguments}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stderr

    def quiet(self, *arguments: str) -> str:
        """``docker build -q``: the id."""
        done = self.run("build", "-q", *arguments)
        assert done.returncode == 0, f"docker build {arguments}: {done.stdout}{done.stderr}{self.engine.log_text()}"
        return done.stdout.strip()
