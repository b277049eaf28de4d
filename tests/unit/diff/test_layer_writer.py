"""What layers are written of while somebody changes it."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from containerd_py.diff.create import DigestingWriter, LayerWriter


def written(root: Path, name: str, info: os.stat_result) -> tuple[tarfile.TarInfo, bytes]:
    """The member that is written for ``name``, and its data."""
    archive = root.with_name("archive")
    with open(archive, "wb") as file:
        out = DigestingWriter(file.fileno(), "")
        LayerWriter(str(root), out, None).add(name, info)
        out.finish()
    with tarfile.open(archive) as tar:
        (member,) = tar.getmembers()
        data = tar.extractfile(member)
        return member, data.read() if data is not None else b""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    (made / "file").write_bytes(b"x" * 1000)
    return made


def test_a_file_that_shrank_is_filled_up(root: Path) -> None:
    info = os.lstat(root / "file")
    os.truncate(root / "file", 300)
    member, data = written(root, "file", info)
    assert (member.size, data) == (1000, b"x" * 300 + bytes(700))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(root: Path) -> None:
    info = os.lstat(root / "file")
    (root / "file").unlink()
    os.mkfifo(root / "file")
    assert written(root, "file", info)[1] == bytes(1000)


def test_a_link_in_the_place_of_a_file_is_not_followed(root: Path) -> None:
    info = os.lstat(root / "file")
    (root / "file").unlink()
    (root / "file").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        written(root, "file", info)
