"""Compose v2 (Debian trixie's program) with a web server, an application and a database.

Rule: the project is one a user would write; what Compose does with it is looked at through Compose and docker only.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.newer import MISSING, compose_program

COMPOSE = compose_program()
ERASE_LINE = "\x1b[2K"
"""Compose writes it before log lines, terminal or not."""

PROJECT = """
name: shop
services:
  db:
    image: busybox
    command: >-
      sh -c "rm -f /data/ready; echo starting; sleep 1; touch /data/ready; exec nc -ll -p 5432 -e echo forty-two rows"
    stop_grace_period: 1s
    healthcheck: {test: ["CMD", "test", "-e", "/data/ready"], interval: 300ms, timeout: 2s, retries: 50}
    volumes: ["data:/data"]
    networks: [back]
  app:
    image: busybox
    command: sh -c "until nc db 5432 > /www/rows; do sleep 0.1; done; exec httpd -f -p 8080 -h /www"
    stop_grace_period: 0s
    depends_on: {db: {condition: service_healthy}}
    networks: [back, front]
  web:
    image: busybox
    command: sh -c "until wget -qO- http://app:8080/rows; do sleep 0.2; done; cat /etc/motd; exec sleep 1000"
    stop_grace_period: 0s
    depends_on: [app]
    environment: {GREETING: hello}
    networks: [front]
    configs: [{source: motd, target: /etc/motd}]
volumes: {data: {}}
networks: {front: {}, back: {internal: true}}
configs: {motd: {file: ./motd}}
"""

pytestmark = pytest.mark.skipif(COMPOSE is None, reason=f"Compose v2 is {MISSING}")


class Compose:
    """The program in front of one project."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine, self.directory = engine, directory

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"compose {arguments}: {done.stdout}{done.stderr}{self.engine.log_text()}"
        return done.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert COMPOSE is not None
        program = ("env", f"DOCKER_HOST={self.engine.url}", COMPOSE, "--project-directory", str(self.directory))
        return self.engine.host.run(*program, *arguments, timeout=120)


@pytest.fixture
def compose(engine: Engine, tmp_path: Path) -> Iterator[Compose]:
    (tmp_path / "compose.yaml").write_text(PROJECT)
    (tmp_path / "motd").write_text("message of the day\n")
    compose = Compose(engine, tmp_path)
    yield compose
    compose.run("down", "--volumes", "--timeout", "0")


def test_a_project_of_three_services_lives_and_goes(compose: Compose, engine: Engine) -> None:
    compose("up", "--detach", "--wait", "--wait-timeout", "60")

    states = {s["Service"]: s for line in compose("ps", "--format", "json").splitlines() for s in [json.loads(line)]}
    assert {name: state["State"] for name, state in states.items()} == dict.fromkeys(("db", "app", "web"), "running")
    assert states["db"]["Health"] == "healthy"
    assert compose("exec", "-T", "web", "sh", "-c", "echo $GREETING") == "hello\n"
    logs = compose("logs", "--no-log-prefix", "web")
    assert logs.replace(ERASE_LINE, "").splitlines() == ["forty-two rows", "message of the day"]
    assert engine.docker("network", "inspect", "-f", "{{.Internal}}", "shop_back").stdout == "true\n"
    assert compose.run("exec", "-T", "web", "nc", "-w", "1", "db", "5432").returncode != 0, "db is in no common network"

    created = compose("ps", "--quiet", "db")
    compose("up", "--detach", "--no-recreate", "--scale", "app=3")
    assert len(compose("ps", "--quiet", "app").split()) == 3
    assert compose("ps", "--quiet", "db") == created, "what has not changed stays"
    compose("restart", "--timeout", "0", "app")
    compose("stop", "--timeout", "0")
    assert compose("ps", "--quiet") == ""
    compose("start")
    assert len(compose("ps", "--quiet").split()) == 5

    compose("down", "--volumes", "--timeout", "0")
    mine = "label=com.docker.compose.project=shop"
    for kind in ("container", "network", "volume"):
        every = ("--all",) if kind == "container" else ()
        assert engine.docker(kind, "ls", "--quiet", "--filter", mine, *every).stdout == ""


def test_one_off_containers_and_a_changed_service(compose: Compose) -> None:
    assert compose("run", "--rm", "--no-deps", "-T", "web", "echo", "one-off") == "one-off\n"
    compose("up", "--detach", "db")
    before = compose("ps", "--quiet", "db")
    project = compose.directory / "compose.yaml"
    project.write_text(project.read_text().replace("forty-two", "forty-three"))
    compose("up", "--detach", "db")
    assert compose("ps", "--quiet", "db") not in ("", before), "a changed service is made anew"
    assert compose("top", "db").splitlines()[0].startswith("shop-db-1")


def test_logs_that_are_followed_end_with_the_project(compose: Compose) -> None:
    assert COMPOSE is not None
    compose("up", "--detach", "db")
    engine = compose.engine
    program = ("env", f"DOCKER_HOST={engine.url}", COMPOSE, "--project-directory", str(compose.directory))
    follower = engine.host.popen(*program, "logs", "--follow", "--no-log-prefix", "db", stdout=subprocess.PIPE)
    assert follower.stdout is not None
    first = follower.stdout.readline()  # it follows from here on
    compose("down", "--volumes", "--timeout", "0")
    rest, _ = follower.communicate(timeout=30)
    lines = (first + rest).decode().replace(ERASE_LINE, "").splitlines()
    assert lines == ["starting", "db-1 exited with code 137"]
