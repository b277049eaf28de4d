"""Compose builds with BuildKit, as it does without being told otherwise.

Rule: Compose's own program, unchanged; its containers run what it built.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.newer import MISSING, compose_program

COMPOSE = compose_program()
pytestmark = pytest.mark.skipif(COMPOSE is None, reason=f"Compose v2 is {MISSING}")

PROJECT = """
name: built
services:
  one:
    build:
      context: one
      args: {WORD: hello}
      secrets: [token]
    command: cat /word /size
  two:
    build:
      context: two
      additional_contexts: {shared: ./one}
      target: wanted
    image: two:mine
    command: cat /word
secrets: {token: {file: ./token}}
"""


class Project:
    """Compose in front of a project."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.write("compose.yaml", PROJECT)
        self.write("token", "hush")
        self.write(
            "one/Dockerfile",
            "FROM busybox\nARG WORD\nRUN echo $WORD > /word\n"
            "RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /size\n",
        )
        self.write("two/Dockerfile", "FROM busybox AS wanted\nCOPY --from=shared Dockerfile /word\nFROM wanted\n")

    def write(self, name: str, text: str) -> None:
        (self.directory / name).parent.mkdir(exist_ok=True)
        (self.directory / name).write_text(text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert COMPOSE is not None
        program = ("env", f"DOCKER_HOST={self.engine.url}", COMPOSE, "--project-directory", str(self.directory))
        return self.engine.host.run(*program, *arguments, timeout=120)

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"compose {arguments}: {done.stdout}{done.stderr}{self.engine.log_text()}"
        return done.stdout + done.stderr


@pytest.fixture
def project(engine: Engine, tmp_path: Path) -> Iterator[Project]:
    project = Project(engine, tmp_path)
    yield project
    project.run("down", "--timeout", "0", "--rmi", "all")


def test_services_are_built_and_started(project: Project) -> None:
    project("build")
    images = project.engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    assert {"built-one:latest", "two:mine"} <= set(images)
    told = project("up", "--build", "--no-color")
    assert "one-1  | hello" in told and "one-1  | 4" in told and "two-1  | FROM busybox" in told


def test_a_changed_service_alone_is_made_again(project: Project) -> None:
    project.write("compose.yaml", PROJECT.replace("cat /word /size", "sleep 1000").replace("cat /word", "sleep 1000"))
    project("up", "-d", "--build")
    before = ids(project)
    project("up", "-d", "--build")
    assert ids(project) == before
    project.write("one/Dockerfile", "FROM busybox\nRUN echo other > /word\n")
    project.write("two/Dockerfile", "FROM busybox AS wanted\nCOPY --from=shared token* Dockerfile /kept/\n")
    project("up", "-d", "--build", "one")
    after = ids(project)
    assert after["one"] != before["one"] and after["two"] == before["two"]


def ids(project: Project) -> dict[str, str]:
    return {service: project("ps", "-q", service).strip() for service in ("one", "two")}


def test_a_failing_build_fails_compose(project: Project) -> None:
    project.write("two/Dockerfile", "FROM busybox AS wanted\nRUN exit 9\n")
    done = project.run("build", "two")
    assert done.returncode != 0
    assert 'process "/bin/sh -c exit 9" did not complete successfully: exit code: 9' in done.stderr
