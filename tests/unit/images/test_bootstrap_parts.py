"""Base images: the same content gives the same tar, and what differs from run to run is removed."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from engine.images.bootstrap import busybox, debian
from engine.images.bootstrap.apt import Source
from engine.images.bootstrap.tree import Packer, newest


def packed(root: Path, latest: int = 1000) -> bytes:
    out = io.BytesIO()
    packer = Packer(out, latest)
    packer.tree(str(root))
    packer.close()
    return out.getvalue()


def some_tree(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    os.symlink("a", root / "link")
    return root


def test_order_of_creation_and_late_times_do_not_show(tmp_path: Path) -> None:
    first = packed(some_tree(tmp_path / "1", ["a", "d/b", "d/c"]))
    second = packed(some_tree(tmp_path / "2", ["d/c", "d/b", "a"]))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getnames() == ["a", "d", "d/b", "d/c", "link"]
        assert {member.mtime for member in tar} == {1000}
        assert tar.getmember("link").linkname == "a"


def test_hard_links_stay_links(tmp_path: Path) -> None:
    root = some_tree(tmp_path / "t", ["a"])
    os.link(root / "a", root / "b")
    with tarfile.open(fileobj=io.BytesIO(packed(root))) as tar:
        assert tar.getmember("b").islnk()
        assert tar.getmember("b").linkname == "a"


def test_the_newest_file_gives_the_date(tmp_path: Path) -> None:
    root = some_tree(tmp_path / "t", ["a", "d/b"])
    os.utime(root / "a", (1, 5))
    os.utime(root / "d/b", (1, 7))
    assert newest(str(root)) == 7


def test_cleaning_removes_what_differs_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    some_tree(outside, ["precious"])
    root = some_tree(
        tmp_path / "root",
        ["etc/machine-id", "etc/shadow", "var/log/dpkg.log", "usr/share/doc/x/changelog", "usr/share/doc/x/copyright"],
    )
    (root / "etc/shadow").write_text("root:*:20000:0:99999:7:::\n")
    os.symlink(outside, root / "usr/share/doc/y")
    debian.clean(str(root), 86400 * 3, "deb x\n")
    assert (root / "etc/machine-id").read_text() == ""
    assert (root / "etc/shadow").read_text() == "root:*:3:0:99999:7:::\n"
    assert (root / "etc/apt/sources.list").read_text() == "deb x\n"
    assert not (root / "var/log/dpkg.log").exists()
    assert sorted(os.listdir(root / "usr/share/doc/x")) == ["copyright"]
    assert (outside / "precious").exists()


def test_a_source_knows_its_distribution() -> None:
    source = Source("http://host/debian/", "bookworm", "main")
    assert source.distribution == "debian"
    assert source.line("trixie").endswith("http://host/debian/ trixie main\n")


def test_busybox_has_a_link_per_applet_and_users() -> None:
    program = shutil.which("busybox")
    if program is None or not busybox.is_static(program):
        pytest.skip("no static busybox on this machine")
    out = io.BytesIO()
    count = busybox.pack(program, out, 42)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        links = [m.name for m in tar if m.issym() and m.linkname == "busybox"]
        assert len(links) == count > 100
        assert {"bin/sh", "bin/ls", "bin/env"} <= set(links)
        assert (tar.getmember("tmp").mode, tar.getmember("etc/shadow").mode) == (0o1777, 0o600)
        assert {m.mtime for m in tar} == {42}


def test_a_program_that_needs_a_loader_is_not_static() -> None:
    assert not busybox.is_static(os.path.realpath("/bin/sh"))
    assert not busybox.is_static(__file__)
