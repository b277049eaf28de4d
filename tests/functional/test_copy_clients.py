"""``docker cp``, ``export`` and ``diff`` with the real client, on created, running and stopped containers."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine


@pytest.fixture
def host_dir(engine: Engine) -> Path:
    path = engine.host.base / "copies"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(params=["created", "running", "stopped"])
def box(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    engine.docker("create", "--name", "copied", "-v", "copyvolume:/data", "busybox", "sleep", "1000")
    if request.param != "created":
        engine.docker("start", "copied")
    if request.param == "stopped":
        engine.docker("kill", "copied")
    yield "copied"
    engine.docker("rm", "-f", "copied")
    engine.docker("volume", "rm", "copyvolume")


def test_there_and_back(engine: Engine, box: str, host_dir: Path) -> None:
    (host_dir / "tree/sub").mkdir(parents=True, exist_ok=True)
    (host_dir / "tree/sub/file").write_bytes(os.urandom(3_000_000))
    engine.docker("cp", str(host_dir / "tree"), f"{box}:/data/")
    engine.docker("cp", str(host_dir / "tree/sub/file"), f"{box}:/etc/copied")
    engine.docker("cp", f"{box}:/data/tree/sub/file", str(host_dir / "back"))
    assert (host_dir / "back").read_bytes() == (host_dir / "tree/sub/file").read_bytes()
    engine.docker("cp", f"{box}:/etc/copied", str(host_dir / "again"))
    assert (host_dir / "again").read_bytes() == (host_dir / "back").read_bytes()
    engine.docker("cp", f"{box}:/data/tree/.", str(host_dir / "contents"))
    assert (host_dir / "contents/sub/file").exists()
    missing = engine.docker("cp", f"{box}:/nope", str(host_dir), check=False)
    assert f"Could not find the file /nope in container {box}" in missing.stderr


def test_export_and_diff(engine: Engine) -> None:
    engine.docker("run", "--name", "changed", "busybox", "sh", "-c", "echo x > /etc/new; rm /etc/passwd; mkdir /made")
    try:
        lines = set(engine.docker("diff", "changed").stdout.splitlines())
        assert lines == {"C /etc", "A /etc/new", "D /etc/passwd", "A /made"}
        data = engine.host.popen("docker", "-H", engine.url, "export", "changed", stdout=-1, stderr=-1).communicate(
            timeout=30
        )[0]
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = set(tar.getnames())
        assert {"etc/new", "made"} <= names
        assert "etc/passwd" not in names
    finally:
        engine.docker("rm", "changed")


def test_export_of_a_running_container_has_no_volumes(engine: Engine) -> None:
    engine.docker(
        "run", "-d", "--name", "exported", "-v", "/data", "busybox", "sh", "-c", "echo x > /data/f; sleep 100"
    )
    try:
        data = engine.host.popen("docker", "-H", engine.url, "export", "exported", stdout=-1, stderr=-1).communicate(
            timeout=30
        )[0]
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = set(tar.getnames())
        assert "data" in names
        assert "data/f" not in names
        assert not any(name.startswith("proc/") for name in names)
    finally:
        engine.docker("rm", "-fv", "exported")


def test_links_of_a_container_stay_inside(engine: Engine, host_dir: Path) -> None:
    (host_dir / "secret").write_text("the host's")
    engine.docker("run", "-d", "--name", "hostile", "busybox", "sh", "-c", f"ln -s {host_dir} /out; sleep 100")
    try:
        done = engine.docker("cp", "hostile:/out/secret", str(host_dir / "stolen"), check=False)
        assert done.returncode == 1
        assert not (host_dir / "stolen").exists()
        engine.docker("cp", str(host_dir / "secret"), "hostile:/out/planted", check=False)
        assert not (host_dir / "planted").exists()
    finally:
        engine.docker("rm", "-f", "hostile")
