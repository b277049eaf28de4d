"""What the archive worker packs and unpacks, and (as root) what it sees of hostile roots."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.containers import archive_worker as worker
from engine.containers.archive import Archives
from engine.containers.changes import changes
from engine.containers.config import ContainerConfig, HostConfig
from engine.containers.machine import Machine
from engine.containers.model import Container, MountPoint, RootfsMount, State
from engine.containers.registry import Registry
from engine.store import Store
from oci.errors import InvalidArgument, NotFound


def archive(*members: tuple[str, str, bytes]) -> bytes:
    """(name, kind, data) members: ``f`` file, ``d`` directory, ``l`` symlink, ``h`` hard link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mode, info.mtime = os.getuid(), os.getgid(), 0o640, 1000
            if kind == "f":
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                continue
            info.type = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE}[kind]
            info.linkname = data.decode()
            info.mode = 0o750 if kind == "d" else 0o640
            tar.addfile(info)
    return out.getvalue()


def unpack(target: Path, data: bytes, *, keep_kinds: bool = False) -> None:
    worker.Unpacker(str(target), keep_kinds=keep_kinds, owner=None).unpack(io.BytesIO(data))


def test_paths_keep_what_says_directory() -> None:
    assert [worker.absolute(p) for p in ("a/b", "/a/../b/", "/a/.", "", "/../..", "/")] == [
        "/a/b", "/b/", "/a/.", "/", "/", "/",
    ]  # fmt: skip
    assert [worker.base_name(p) for p in ("/a/b", "/a/", "/a/.", "/")] == ["b", "a", ".", "/"]


def test_modes_are_gos() -> None:
    assert worker.go_mode(0o100755) == 0o755
    assert worker.go_mode(0o040755) == 1 << 31 | 0o755
    assert worker.go_mode(0o120777) == 1 << 27 | 0o777
    assert worker.go_mode(0o104755) == 1 << 23 | 0o755
    assert worker.go_mode(0o041777) == 1 << 31 | 1 << 20 | 0o777


def test_packing_and_unpacking(tmp_path: Path) -> None:
    source = tmp_path / "dir"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_bytes(b"x" * 100000)
    os.link(source / "sub/file", source / "twin")
    os.symlink("/etc/passwd", source / "link")
    os.mkfifo(source / "fifo")
    out = io.BytesIO()
    packer = worker.Packer(out)
    packer.add(str(source), "dir")
    packer.close()
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        assert tar.getnames() == ["dir", "dir/fifo", "dir/link", "dir/sub", "dir/sub/file", "dir/twin"]
        assert tar.getmember("dir/twin").islnk()
    target = tmp_path / "target"
    target.mkdir()
    unpack(target, out.getvalue())
    assert (target / "dir/sub/file").read_bytes() == b"x" * 100000
    assert (target / "dir/twin").samefile(target / "dir/sub/file")
    assert os.readlink(target / "dir/link") == "/etc/passwd"


def test_unpacking_replaces_as_docker_does(tmp_path: Path) -> None:
    (tmp_path / "d/full").mkdir(parents=True)
    (tmp_path / "f").write_text("old")
    unpack(tmp_path, archive(("d", "f", b"now a file"), ("f", "d", b"")))
    assert (tmp_path / "d").read_text() == "now a file"
    assert (tmp_path / "f").is_dir()
    with pytest.raises(worker.Refused, match="cannot overwrite directory"):
        unpack(tmp_path, archive(("f", "f", b"")), keep_kinds=True)
    with pytest.raises(worker.Refused, match="cannot overwrite non-directory"):
        unpack(tmp_path, archive(("d", "d", b"")), keep_kinds=True)
    unpack(tmp_path, b"")
    unpack(tmp_path, archive(("../../up", "f", b"stays inside")))
    assert (tmp_path / "up").read_text() == "stays inside"
    with pytest.raises(worker.Refused, match="cannot read the archive"):
        unpack(tmp_path, archive(("x", "f", b"y" * 2000))[:1000])


class Box:
    """A stopped container over a plain directory, with one volume and one read-only bind."""

    def __init__(self, tmp_path: Path, *, readonly: bool = False) -> None:
        self.root, self.volume, self.bound = (tmp_path / n for n in ("root", "volume", "bound"))
        for path in (self.root, self.volume, self.bound):
            path.mkdir()
        points = (
            MountPoint(type="bind", source=str(self.volume), destination="/data"),
            MountPoint(type="bind", source=str(self.bound), destination="/ro", rw=False),
        )
        doc = Container(
            id="c" * 64, name="box", created_at=1, image_id="sha256:0", image_manifest=None, chain_id="",
            snapshotter="overlayfs", platform="linux/amd64", path="sh", args=(), mounts=points,
            config=ContainerConfig(user="7:8"), host=HostConfig(readonly_rootfs=readonly), state=State(),
        )  # fmt: skip
        machine = Machine(Store(":memory:"), doc)
        rootfs = (RootfsMount("bind", str(self.root), ("rbind", "rw")),)

        async def mounts(machine: Machine) -> tuple[RootfsMount, ...]:
            return rootfs

        fake = SimpleNamespace(
            subpaths=str(tmp_path / "subpaths"),
            find=lambda ref: machine, rootfs=mounts, directory=lambda ident: str(tmp_path / "files"),
            publish=lambda *a: None,
        )  # fmt: skip
        self.archives = Archives(cast(Registry, fake))

    def get(self, path: str) -> tuple[dict[str, Any], dict[str, bytes | None]]:
        async def scenario() -> tuple[str, bytes]:
            header, pieces = await self.archives.get("box", path)
            return header, b"".join([piece async for piece in pieces])

        header, data = asyncio.run(scenario())
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found = {m.name: (cast(Any, tar.extractfile(m)).read() if m.isreg() else None) for m in tar}
        return json.loads(base64.b64decode(header)), found

    def put(self, path: str, data: bytes, **options: bool) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 5000):
                yield data[at : at + 5000]

        flags = {"keep_kinds": False, "as_user": False, **options}
        asyncio.run(self.archives.put("box", path, chunks(), **flags))


@pytest.mark.root
def test_a_stopped_container_is_seen_with_its_volumes(tmp_path: Path) -> None:
    box = Box(tmp_path)
    (box.root / "etc").mkdir()
    (box.root / "etc/file").write_text("hello")
    (box.volume / "inside").write_text("volume")
    found, members = box.get("/etc/file")
    assert (found["name"], found["size"], found["linkTarget"], members) == ("file", 5, "", {"file": b"hello"})
    assert box.get("data/.")[1] == {".": None, "./inside": b"volume"}
    assert box.get("/data")[1] == {"data": None, "data/inside": b"volume"}
    box.put("/data", archive(("new", "f", b"1")))
    assert (box.volume / "new").read_text() == "1"
    box.put("/etc", archive(("big", "f", b"z" * 3_000_000)), as_user=True)
    assert (os.stat(box.root / "etc/big").st_size, os.stat(box.root / "etc/big").st_uid) == (3_000_000, 7)
    with pytest.raises(NotFound, match="Could not find the file /nope in container box"):
        box.get("/nope")
    with pytest.raises(InvalidArgument, match="extraction point is not a directory"):
        box.put("/etc/file", archive(("a", "f", b"")))
    with pytest.raises(InvalidArgument, match="mounted volume is marked read-only"):
        box.put("/ro", archive(("a", "f", b"")))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_a_read_only_root_is_left_alone(tmp_path: Path) -> None:
    box = Box(tmp_path, readonly=True)
    with pytest.raises(InvalidArgument, match="container rootfs is marked read-only"):
        box.put("/", archive(("a", "f", b"")))
    box.put("/data", archive(("a", "f", b"")))
    assert (box.volume / "a").exists()


@pytest.mark.root
def test_hostile_links_lead_nowhere(tmp_path: Path) -> None:
    box = Box(tmp_path)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("host's")
    os.symlink(str(secret), box.root / "out")
    os.symlink("../../../../../.." + str(secret), box.root / "up")
    for path in ("/out/key", "/up/key", "/out/", "/../../.." + str(secret)):
        with pytest.raises(NotFound):
            box.get(path)
    with pytest.raises(InvalidArgument, match="No such file"):
        box.put("/", archive(("evil", "l", str(secret).encode()), ("evil/planted", "f", b"x")))
    assert os.listdir(secret) == ["key"]
    # A library or module planted where the host's would be looked for is not loaded.
    (box.root / "encodings").mkdir()
    (box.root / "encodings/__init__.py").write_text("raise SystemExit(9)")
    assert box.get("/encodings")[1]["encodings/__init__.py"] == b"raise SystemExit(9)"


def test_changes_are_read_from_the_upper_directory(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for path in (upper / "etc", upper / "new/deep", lower / "etc", lower / "keep", upper / "proc"):
        path.mkdir(parents=True)
    (lower / "etc/changed").write_text("1")
    (upper / "etc/changed").write_text("2")
    (upper / "etc/added").write_text("3")
    (upper / "etc/hosts").write_text("")
    mount = RootfsMount("overlay", "overlay", (f"upperdir={upper}", f"lowerdir={lower}", "workdir=/w"))
    assert changes([mount]) == [
        ("/etc", 0), ("/etc/added", 1), ("/etc/changed", 0), ("/new", 1), ("/new/deep", 1),
    ]  # fmt: skip
    assert changes([RootfsMount("bind", str(lower), ())]) == []


@pytest.mark.root
def test_removals_are_changes(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    upper.mkdir()
    lower.mkdir()
    (lower / "gone").write_text("")
    os.mknod(upper / "gone", 0o020000, 0)
    mount = RootfsMount("overlay", "overlay", (f"upperdir={upper}", f"lowerdir={lower}"))
    assert changes([mount]) == [("/gone", 2)]
