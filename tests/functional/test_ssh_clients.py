"""``ssh://`` hosts: docker, the SDK's way and gantry, through what runs on the other side.

Rule: the ``ssh`` that is found first is a stand-in which runs the command it is given as a remote shell would, with
that side's ``PATH``; everything else is real. A remote side has docker's client, or only gantry under its name.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.engine import DOCKER, Engine

SSH = """#!/bin/sh
# ssh [OPTIONS] [--] HOST COMMAND...: a shell on that host
echo "$@" >> {log}
while :; do
    case "$1" in
        -o|-p|-l|-i) shift 2 ;;
        --) shift; break ;;
        -*) shift ;;
        *) break ;;
    esac
done
shift
export PATH={remote}:$PATH
exec sh -c "$*"
"""
GANTRY = """#!/bin/sh
exec {python} -m cli.main -H {url} "$@"
"""
CLIENT = """#!/bin/sh
exec {docker} -H {url} "$@"
"""


class Remote:
    """A "machine" that is reached by ssh."""

    def __init__(self, engine: Engine, base: Path, *, has_docker: bool) -> None:
        self.engine, self.log = engine, base / "log"
        local, remote = base / "local", base / "remote"
        values = {"log": self.log, "remote": remote, "python": sys.executable, "docker": DOCKER, "url": engine.url}
        scripts = {local / "ssh": SSH, remote / "gantry": GANTRY, remote / "docker": CLIENT if has_docker else GANTRY}
        for path, text in scripts.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.format(**values))
            path.chmod(0o755)
        self.local = ("env", f"PATH={local}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")


@pytest.fixture(scope="module", params=["docker", "gantry"])
def remote(make_engine: Callable[..., Engine], request: pytest.FixtureRequest) -> Iterator[Remote]:
    engine = make_engine()
    base = engine.host.base / "ssh"
    base.mkdir()
    yield Remote(engine, base, has_docker=request.param == "docker")
    shutil.rmtree(base)


def test_docker_over_ssh(remote: Remote) -> None:
    docker = (*remote.local, DOCKER, "-H", "ssh://user@far:2222")
    host = remote.engine.host
    assert host.check(*docker, "version", "--format", "{{.Server.Os}}") == "linux\n"
    assert host.check(*docker, "run", "-i", "--rm", "busybox", "cat", stdin=b"there and back\n") == "there and back\n"
    assert host.run(*docker, "run", "--rm", "busybox", "sh", "-c", "exit 6").returncode == 6
    sent = remote.log.read_text().splitlines()[0]
    assert "-l user" in sent and "-p 2222" in sent and sent.endswith("far docker system dial-stdio")


def test_much_at_once_both_ways_over_ssh(remote: Remote, tmp_path: Path) -> None:
    data = tmp_path / "data"
    docker = " ".join((*remote.local, DOCKER, "-H", "ssh://far"))
    script = f"""
        head -c 30M /dev/urandom > {data}
        {docker} run -i --rm --network none busybox cat < {data} | cmp - {data} && echo same"""
    assert remote.engine.host.check("bash", "-euo", "pipefail", "-c", script, timeout=120) == "same\n"


def test_gantry_over_ssh(remote: Remote) -> None:
    gantry = (*remote.local, sys.executable, "-m", "cli.main", "-H", "ssh://far")
    host = remote.engine.host
    assert host.check(*gantry, "run", "-i", "--rm", "busybox", "cat", stdin=b"there and back\n") == "there and back\n"
    assert host.run(*gantry, "run", "--rm", "busybox", "sh", "-c", "exit 6").returncode == 6
