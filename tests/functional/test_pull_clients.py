"""Pull and push with the real docker client and a real registry inside the private host."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for

CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:5000"}}
"""
NAME = "localhost:5000/team/box"


@pytest.fixture(scope="module")
def house(make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    """An engine with ``docker-registry`` beside it."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    engine = make_engine()
    config = engine.host.base / "registry.yml"
    config.write_text(CONFIG.format(root=engine.host.base / "registry"))
    quiet = subprocess.DEVNULL
    registry = engine.host.popen("docker-registry", "serve", str(config), stdin=quiet, stdout=quiet, stderr=quiet)
    wait_for(lambda: engine.host.run("curl", "-s", "http://127.0.0.1:5000/v2/").returncode == 0, "the registry")
    yield engine
    for pid in engine.host.pids_of("docker-registry", "serve"):
        engine.host.run("kill", engine.host.inner_pid(pid))
    registry.kill()
    registry.wait()


def test_push_and_pull(house: Engine) -> None:
    house.docker("tag", "busybox", f"{NAME}:1")
    pushed = house.docker("push", f"{NAME}:1").stdout
    assert f"The push refers to repository [{NAME}]" in pushed
    assert "Pushed" in pushed
    assert "1: digest: sha256:" in pushed
    assert "Layer already exists" in house.docker("push", f"{NAME}:1").stdout
    house.docker("rmi", f"{NAME}:1", "busybox")
    pulled = house.docker("pull", f"{NAME}:1").stdout
    for text in ("1: Pulling from team/box", "Pull complete", "Digest: sha256:"):
        assert text in pulled
    assert f"Status: Downloaded newer image for {NAME}:1" in pulled
    again = house.docker("pull", f"{NAME}:1").stdout
    assert f"Status: Image is up to date for {NAME}:1" in again
    assert "Pulling fs layer" not in again
    assert house.docker("run", "--rm", f"{NAME}:1", "echo", "hi").stdout == "hi\n"
    house.docker("tag", f"{NAME}:1", "busybox")


def test_pull_by_digest_and_all_tags(house: Engine) -> None:
    for tag in ("1", "2"):
        house.docker("tag", "busybox", f"{NAME}:{tag}")
        house.docker("push", "-q", f"{NAME}:{tag}")
    digest = (
        house.docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", f"{NAME}:1").stdout.strip().split("@")[1]
    )
    house.docker("rmi", f"{NAME}:1", f"{NAME}:2")
    assert f"@{digest}" in house.docker("pull", f"{NAME}@{digest}").stdout
    house.docker("pull", "-a", NAME)
    tags = house.docker("images", "--format", "{{.Tag}}", NAME).stdout.split()
    assert {"1", "2"} <= set(tags)


@pytest.mark.parametrize("way", ["pull", "load"])
def test_a_name_that_comes_anew_leaves_its_image_without_one(house: Engine, way: str, busybox_tar: bytes) -> None:
    name = f"{NAME}:{way}"
    made = [house.docker("import", "-c", f"LABEL n={n}", "-", name, stdin=busybox_tar).stdout.strip() for n in "ab"]
    archive = str(house.host.base / "moved.tar")
    if way == "pull":
        house.docker("push", "-q", name)
    else:
        house.docker("save", "-o", archive, name)
    house.docker("tag", made[0], name)
    house.docker("rmi", made[1])
    house.docker(*(("pull", "-q", name) if way == "pull" else ("load", "-q", "-i", archive)))
    shown = json.loads(house.docker("image", "inspect", name, made[0]).stdout)
    assert [(image["Id"], image["RepoTags"]) for image in shown] == [(made[1], [name]), (made[0], [])]
    assert house.docker("run", "--rm", made[0], "echo", "still whole").stdout == "still whole\n"
    house.docker("rmi", name, made[0])


def test_what_is_not_there_is_said_before_the_stream_begins(house: Engine) -> None:
    status, body = house.api("POST", "/images/create?fromImage=localhost:5000/team/box&tag=nosuch")
    assert (status, body["message"]) == (
        404,
        "manifest for localhost:5000/team/box:nosuch not found: manifest unknown: manifest unknown",
    )
    status, body = house.api("POST", "/images/create?fromImage=Bad::Name&tag=1")
    assert (status, "invalid reference format" in body["message"]) == (400, True)


def test_distribution_tells_what_a_name_points_at(house: Engine) -> None:
    house.docker("tag", "busybox", f"{NAME}:d")
    house.docker("push", "-q", f"{NAME}:d")
    status, body = house.api("GET", f"/distribution/{NAME}:d/json")
    assert (status, body["Platforms"][0]["os"]) == (200, "linux")
    target = json.loads(house.docker("image", "inspect", f"{NAME}:d").stdout)[0]["Descriptor"]
    assert body["Descriptor"]["digest"] == target["digest"]


def test_run_pulls_what_is_missing(house: Engine) -> None:
    house.docker("tag", "busybox", f"{NAME}:r")
    house.docker("push", "-q", f"{NAME}:r")
    house.docker("rmi", f"{NAME}:r")
    done = house.docker("run", "--rm", f"{NAME}:r", "echo", "pulled")
    assert done.stdout == "pulled\n"
    assert "Unable to find image" in done.stderr
