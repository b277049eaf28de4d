"""Testcontainers for Python (PyPI) as test suites use it, reaper included.

Rule: the library is the published one and runs as a user's test run does, in a process of its own. Its reaper's image
lives on a public registry that tests do not reach; a stand-in speaks the same protocol (filters come on port 8080, what
they match is removed when the connection ends) with the docker CLI on the API socket that the library binds into it.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import DOCKER, Engine
from tests.support.host import wait_for

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("testcontainers") is None,
        reason="testcontainers is missing: pip install testcontainers",
    ),
    pytest.mark.timeout(180),
]

REAPER_IMAGE = "reaper:stand-in"
REAPER = b"""#!/bin/sh
read -r filter
echo ACK
cat >/dev/null
filter=$(echo "$filter" | tr -d '\\r')
docker ps --all --quiet --filter "$filter" | xargs -r docker rm --force --volumes
docker network prune --force --filter "$filter"
"""

RUN = """
import os, signal, sys
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import HttpWaitStrategy, LogMessageWaitStrategy

network = Network().create()
web = DockerContainer("busybox").with_command("sh -c 'echo it is up; exec httpd -f -p 80 -h /www'")
web = web.with_exposed_ports(80).with_network(network).with_network_aliases("web").with_env("GREETING", "hello")
web = web.waiting_for(LogMessageWaitStrategy("it is up")).start()
web.waiting_for(HttpWaitStrategy(80).for_status_code(200))
url = f"http://{web.get_container_host_ip()}:{web.get_exposed_port(80)}/index.html"
assert urllib.request.urlopen(url, timeout=10).read() == b"served\\n"
done = web.exec(["sh", "-c", "echo $GREETING; exit 3"])
assert (done.exit_code, done.output) == (3, b"hello\\n"), done
assert web.get_logs()[0] == b"it is up\\n"
other = DockerContainer("busybox").with_command("wget -qO- http://web/index.html").with_network(network)
with other:
    assert other.get_wrapped_container().wait()["StatusCode"] == 0
    assert other.get_logs()[0] == b"served\\n"
print(web.get_wrapped_container().id, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
web.stop()
network.remove()
"""


def reaper_root() -> bytes:
    """A tar of what the stand-in has beside busybox: the docker CLI, its libraries, the script."""
    out = io.BytesIO()
    found = subprocess.run(["ldd", DOCKER], capture_output=True, text=True, check=False)
    libraries = [word for line in found.stdout.splitlines() for word in line.split() if word.startswith("/")]
    with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
        tar.add(DOCKER, "bin/docker")
        for path in libraries:
            tar.add(path, path.lstrip("/"))
        entry = tarfile.TarInfo("reap")
        entry.mode, entry.size = 0o755, len(REAPER)
        tar.addfile(entry, io.BytesIO(REAPER))
    return out.getvalue()


@pytest.fixture(scope="module")
def house(make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = make_engine()
    engine.docker(
        "create", "--name", "base", "busybox", "sh", "-c", "echo Reaper Started!; exec nc -l -p 8080 -e /reap"
    )
    engine.docker("cp", "-", "base:/", stdin=reaper_root())
    engine.docker("commit", "base", REAPER_IMAGE)
    engine.docker("rm", "base")
    yield engine


def names(engine: Engine, kind: str) -> set[str]:
    """Containers or networks that Testcontainers made and that are still there."""
    every = ("--all",) if kind == "container" else ()
    shown = engine.docker(kind, "ls", *every, "--format", "{{.Names}}" if every else "{{.Name}}", "--no-trunc")
    return set(shown.stdout.split()) - {"bridge", "host", "none"}


def run_suite(engine: Engine, end: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a user's test run does; ``end`` is ``cleanly`` or ``killed``."""
    settings = {"DOCKER_HOST": engine.url, "RYUK_CONTAINER_IMAGE": REAPER_IMAGE, **environment}
    exports = [f"{name}={value}" for name, value in settings.items()]
    return engine.host.run("env", *exports, sys.executable, "-c", RUN, end, timeout=120)


@pytest.mark.parametrize("reaper", ["with its reaper", "without"])
def test_a_suite_that_ends_leaves_nothing(house: Engine, reaper: str) -> None:
    done = run_suite(house, "cleanly", TESTCONTAINERS_RYUK_DISABLED=str(reaper == "without").lower())
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{house.log_text()}"
    wait_for(lambda: not names(house, "container") and not names(house, "network"), "everything to be removed", 60)


def test_what_a_killed_suite_left_is_reaped(house: Engine) -> None:
    done = run_suite(house, "killed")
    assert done.returncode in (-9, 137), f"{done.returncode}: {done.stdout}{done.stderr}{house.log_text()}"
    assert len(done.stdout.strip()) == 64, "the container's id was told before the end"
    wait_for(lambda: not names(house, "container") and not names(house, "network"), "the reaper to have been here", 60)
