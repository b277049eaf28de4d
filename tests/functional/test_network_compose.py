"""Compose projects: their networks, service names, scaling, aliases and ports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for
from tests.support.newer import MISSING, compose_program

COMPOSE = compose_program()

pytestmark = pytest.mark.skipif(COMPOSE is None, reason=f"Compose v2 is {MISSING}")

PROJECT = """
services:
  web:
    image: busybox
    command: httpd -f -p "[::]:80" -h /www
    stop_grace_period: 0s
    networks:
      front: {aliases: [www]}
      back: {}
    ports: ["8090:80"]
  scaled:
    image: busybox
    command: sleep 600
    stop_grace_period: 0s
    networks: [back]
    scale: 3
  client:
    image: busybox
    command: sleep 600
    stop_grace_period: 0s
    networks:
      back: {ipv4_address: 10.91.0.77}
    extra_hosts: ["gate:host-gateway"]
    depends_on: [web]
  alone:
    image: busybox
    command: sleep 600
    stop_grace_period: 0s
    networks: [front]
networks:
  front:
    enable_ipv6: true
    ipam: {config: [{subnet: 10.90.0.0/24}, {subnet: "fd90::/64"}]}
    driver_opts: {com.docker.network.driver.mtu: "1450"}
  back:
    internal: true
    ipam: {config: [{subnet: 10.91.0.0/24}]}
"""


class Project:
    """One Compose project on an engine."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self.file = directory / "compose.yaml"
        self.file.write_text(PROJECT)

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Output of a Compose command."""
        assert COMPOSE is not None
        command = ["env", f"DOCKER_HOST={self._engine.url}", COMPOSE, "-p", "net", "-f", str(self.file), *arguments]
        done: subprocess.CompletedProcess[str] = self._engine.host.run(*command, timeout=100)
        if check:
            assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}{self._engine.log_text()}"
        return done.stdout

    def sh(self, service: str, script: str) -> str:
        """Output of a script in a service's first container."""
        return self.compose("exec", "-T", service, "sh", "-c", script, check=False)


@pytest.fixture(scope="module")
def project(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    found = Project(engine, tmp_path_factory.mktemp("project"))
    found.compose("up", "-d")
    try:
        wait_for(lambda: "served" in found.sh("web", "wget -qO- http://127.0.0.1/"), "the web service")
        yield found
    finally:
        found.compose("down", "-t", "0")


def test_services_find_each_other_on_their_networks(project: Project) -> None:
    assert project.sh("client", "wget -qO- http://web/") == "served\n"
    assert project.sh("alone", "wget -qO- http://www/") == "served\n"
    assert "10.91.0.77" in project.sh("web", "nslookup client")
    assert "fd90::" in project.sh("alone", "nslookup www")
    assert "172.17.0.1\tgate" in project.sh("client", "cat /etc/hosts")


def test_a_scaled_service_is_all_its_containers(project: Project) -> None:
    found = {line for line in project.sh("client", "nslookup scaled").splitlines() if "10.91.0" in line}
    assert len(found) == 3
    project.compose("up", "-d", "--scale", "scaled=2", "--no-recreate")
    found = {line for line in project.sh("client", "nslookup scaled").splitlines() if "10.91.0" in line}
    assert len(found) == 2
    assert "10.91.0" in project.sh("client", "nslookup net-scaled-1")


def test_networks_are_apart_and_ports_published(project: Project, engine: Engine) -> None:
    assert "served" not in project.sh("alone", "timeout 2 wget -qO- http://10.91.0.77/ 2>&1")
    assert engine.host.run("curl", "-s", "-m", "20", "http://127.0.0.1:8090/").stdout == "served\n"
    (front,) = json.loads(engine.docker("network", "inspect", "net_front").stdout)
    assert front["Labels"]["com.docker.compose.network"] == "front"
    assert "mtu 1450" in project.sh("alone", "ip link show eth0")


def test_recreated_services_are_found_again(project: Project) -> None:
    project.compose("up", "-d", "--force-recreate", "--no-deps", "web")
    wait_for(lambda: "served" in project.sh("client", "wget -qO- http://web/"), "the recreated service")
    project.compose("restart", "-t", "0", "web")
    wait_for(lambda: "served" in project.sh("client", "wget -qO- http://web/"), "the restarted service")
