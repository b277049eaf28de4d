"""``docker cp``, ``export`` and ``diff`` with the real client, on created, running and stopped containers."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for


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


def test_the_whole_root_has_volumes_and_nothing_of_the_kernel(engine: Engine, box: str, host_dir: Path) -> None:
    (host_dir / "content").write_text("kept")
    engine.docker("cp", str(host_dir / "content"), f"{box}:/data/content")
    packed = host_dir / "root.tar"
    engine.host.check("sh", "-c", f"docker -H {engine.url} cp {box}:/ - > {packed}")
    with tarfile.open(packed) as tar:
        names = {name.strip("/") for name in tar.getnames()}
    assert "data/content" in names and "etc/passwd" in names
    assert not [name for name in names if name.startswith(("proc/", "sys/"))]


def archive_of(kind: bytes, name: str, link: str = "") -> bytes:
    """One member of that kind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        tar.addfile(entry)
    return out.getvalue()


ODD = "cd /tmp; mkdir sub; ln -s /nowhere dangling; ln -s loop loop; touch file; sleep 1000"


@pytest.fixture
def odd(engine: Engine) -> Iterator[str]:
    name = engine.docker("run", "-d", "busybox", "sh", "-c", ODD).stdout.strip()
    wait_for(lambda: engine.docker("exec", name, "test", "-e", "/tmp/file", check=False).returncode == 0, "the files")
    yield name
    engine.docker("rm", "-f", name)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tmp/dangling", archive_of(tarfile.REGTYPE, "f"), 404),
        ("/tmp/loop", archive_of(tarfile.REGTYPE, "f"), 404),
        ("/tmp/file", archive_of(tarfile.REGTYPE, "f"), 400),
        ("/tmp/file/x", archive_of(tarfile.REGTYPE, "f"), 404),
        ("/tmp", archive_of(tarfile.REGTYPE, "dangling/f"), 400),
        ("/tmp", archive_of(tarfile.REGTYPE, "loop/f"), 400),
        ("/tmp", archive_of(tarfile.REGTYPE, "file/f"), 400),
        ("/tmp", archive_of(tarfile.REGTYPE, "n" * 300), 400),
        ("/tmp", archive_of(tarfile.LNKTYPE, "hard", "nothing"), 400),
        ("/tmp", b"garbage" * 200, 400),
        ("/sys", archive_of(tarfile.REGTYPE, "f"), 403),
        ("/tmp/%00", archive_of(tarfile.REGTYPE, "f"), 400),
        ("/tmp", archive_of(tarfile.REGTYPE, "../../f"), 200),
        ("/tmp/dangling/f", None, 404),
        ("/tmp/loop/f", None, 404),
        ("/tmp/file/f", None, 404),
        ("/tmp/dangling", None, 200),
    ],
)
def test_odd_paths_are_the_clients_mistake(
    engine: Engine, odd: str, host_dir: Path, path: str, body: bytes | None, status: int
) -> None:
    (host_dir / "body.tar").write_bytes(body or b"")
    send = f"-T {host_dir}/body.tar" if body is not None else ""
    command = f"curl -s -o {host_dir}/answer -w '%{{http_code}}' {send} --unix-socket {engine.socket}"
    got = engine.host.check("sh", "-c", f"{command} 'http://engine/containers/{odd}/archive?path={path}'")
    assert int(got) == status, (host_dir / "answer").read_text(errors="replace")
