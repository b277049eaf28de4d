"""COPY: what of a tree lands where in a layer, with which owner and mode, and under which key."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.build import layers
from engine.build.context import Context
from engine.build.copying import Inline, Member, Owner, Request, key, members
from engine.build.modes import parse_mode
from engine.build.stagetree import StageTree
from engine.build.trees import Tree, matches, resolve
from oci.errors import InvalidArgument, NotFound


def archive(*entries: tuple[str, bytes | str | None], mtime: int = 1_700_000_000) -> bytes:
    """A tar: bytes are files, text a link's target, None a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, what in entries:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = mtime, 0o644
            if what is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
            else:
                info.size = len(what)
            tar.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return out.getvalue()


def received(data: bytes, tmp_path: Path) -> Context:
    context = Context(str(tmp_path / "spool"))
    source = io.BytesIO(data)
    context.receive(source.read)
    return context


FILES = archive(
    ("a.txt", b"A"), ("b.txt", b"B"), ("dir", None), ("dir/x", b"X"), ("dir/sub", None), ("dir/sub/y.o", b"Y"),
    ("link", "a.txt"), ("dirlink", "dir"), ("up", "../../a.txt"),
)  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    found = received(FILES, tmp_path)
    yield found
    found.close()


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[StageTree]:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for layer in (lower, upper):
        layer.mkdir()
    (lower / "existing").mkdir()
    (lower / "existing" / "old").write_text("old")
    (lower / "gone").write_text("gone")
    (lower / "real").mkdir()
    (upper / "way").symlink_to("/real")
    (upper / "existing").mkdir()
    (upper / "existing" / "new").write_text("new")
    if os.geteuid() == 0:
        os.mknod(upper / "gone", stat.S_IFCHR | 0o600, 0)
    tree = StageTree([str(upper), str(lower)])
    yield tree
    tree.close()


def copied(request: Request, tree: Tree, rootfs: Tree) -> dict[str, Member]:
    found = members(request, tree, rootfs)
    assert len({m.path for m in found}) == len(found)
    return {m.path: m for m in found}


def test_file_to_a_name_and_into_directories(context: Context, rootfs: StageTree) -> None:
    assert list(copied(Request("/x/y", ("a.txt",)), context, rootfs)) == ["x", "x/y"]
    assert list(copied(Request("/x/", ("a.txt",)), context, rootfs)) == ["x", "x/a.txt"]
    assert list(copied(Request("/existing", ("a.txt",)), context, rootfs)) == ["existing/a.txt"]
    assert list(copied(Request("/d/", ("a.txt", "b.txt")), context, rootfs)) == ["d", "d/a.txt", "d/b.txt"]


def test_directory_gives_its_contents(context: Context, rootfs: StageTree) -> None:
    found = copied(Request("/to", ("dir",)), context, rootfs)
    assert list(found) == ["to", "to/sub", "to/sub/y.o", "to/x"]
    assert stat.S_IMODE(found["to"].node.mode) == 0o755
    assert stat.S_IMODE(found["to/sub"].node.mode) == 0o750


def test_links_of_the_rootfs_are_followed_inside_it(context: Context, rootfs: StageTree) -> None:
    assert list(copied(Request("/way/f", ("a.txt",)), context, rootfs)) == ["real/f"]
    assert list(copied(Request("/way", ("a.txt",)), context, rootfs)) == ["real/a.txt"]
    assert "real/x" in copied(Request("/way", ("dir",)), context, rootfs)


def test_links_of_the_context(context: Context, rootfs: StageTree) -> None:
    found = copied(Request("/f", ("link",)), context, rootfs)
    assert found["f"].node.is_file, "a link that is named is followed"
    assert "t/x" in copied(Request("/t", ("dirlink",)), context, rootfs)
    up = copied(Request("/f", ("up",)), context, rootfs)
    assert (up["f"].source, up["f"].node.is_file) == ("a.txt", True), ".. stops at the context's root"


def test_wildcards_and_what_matches_nothing(context: Context, rootfs: StageTree) -> None:
    assert matches(context, "*.txt") == ["a.txt", "b.txt"]
    assert matches(context, "**/*.o") == ["dir/sub/y.o"]
    assert matches(context, "[^a].txt") == ["b.txt"]
    assert list(copied(Request("/d/", ("*.txt",)), context, rootfs)) == ["d", "d/a.txt", "d/b.txt"]
    with pytest.raises(NotFound, match="stat nope: file does not exist"):
        members(Request("/x", ("nope",)), context, rootfs)
    with pytest.raises(NotFound, match="matches nothing"):
        members(Request("/x/", ("*.zip",)), context, rootfs)
    with pytest.raises(InvalidArgument, match="must be a directory and end with a /"):
        members(Request("/x", ("a.txt", "b.txt")), context, rootfs)


def test_owner_mode_exclude_parents_and_inline(context: Context, rootfs: StageTree) -> None:
    request = Request("/n/m/", ("dir",), owner=Owner(5, 6), mode=parse_mode("u=rwX,go="), exclude=("**/*.o",))
    found = copied(request, context, rootfs)
    assert set(found) == {"n", "n/m", "n/m/x", "n/m/sub"}
    assert {(m.node.uid, m.node.gid) for m in found.values()} == {(5, 6)}
    assert stat.S_IMODE(found["n/m/x"].node.mode) == 0o600
    assert stat.S_IMODE(found["n/m/sub"].node.mode) == 0o700
    assert "p/dir/sub/y.o" in copied(Request("/p/", ("dir/sub/y.o",), parents=True), context, rootfs)
    assert "p/sub/y.o" in copied(Request("/p/", ("dir/./sub/y.o",), parents=True), context, rootfs)
    inline = copied(Request("/i/", (), inline=(Inline("one", b"1\n"),)), context, rootfs)
    assert inline["i/one"].content == b"1\n"


def test_key_follows_content_and_not_time(tmp_path: Path, rootfs: StageTree) -> None:
    keys = []
    for number, (content, mtime) in enumerate([(b"same", 1), (b"same", 2), (b"other", 1)]):
        (tmp_path / str(number)).mkdir()
        tree = received(archive(("f", content), mtime=mtime), tmp_path / str(number))
        keys.append(key(members(Request("/f", ("f",)), tree, rootfs)))
    assert keys[0] == keys[1] != keys[2]


def test_layer_is_a_tar_with_equal_bytes(context: Context, rootfs: StageTree) -> None:
    found = members(Request("/to/", ("dir", "a.txt")), context, rootfs)
    first = b"".join(layers.archive(found, now=100))
    assert b"".join(layers.archive(found, now=100)) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getnames() == ["to", "to/sub", "to/sub/y.o", "to/x", "to/a.txt"]
        extracted = tar.extractfile("to/sub/y.o")
        assert extracted is not None
        assert extracted.read() == b"Y"
        assert tar.getmember("to/x").mtime == 1_700_000_000
    with tarfile.open(fileobj=io.BytesIO(b"".join(layers.archive(found, now=100, epoch=50)))) as tar:
        assert {m.mtime for m in tar.getmembers()} == {50}


def test_dockerignore_takes_files_out(tmp_path: Path) -> None:
    data = archive((".dockerignore", b"*\n!keep\n!d/in\n"), ("keep", b""), ("lose", b""), ("d", None), ("d/in", b""),
                   ("d/out", b""), ("Dockerfile", b"FROM x"))  # fmt: skip
    context = received(data, tmp_path)
    context.ignore("Dockerfile")
    assert context.children("") == ["d", "keep"]
    assert context.children("d") == ["in"]


def test_own_ignore_file_of_a_dockerfile_comes_first(tmp_path: Path) -> None:
    data = archive((".dockerignore", b"a\n"), ("b.Dockerfile.dockerignore", b"b\n"), ("a", b""), ("b", b""))
    context = received(data, tmp_path)
    context.ignore("b.Dockerfile")
    assert context.node("a") is not None
    assert context.node("b") is None


def test_context_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        received(FILES[:700], tmp_path)
    with pytest.raises(InvalidArgument):
        received(b"no tar at all" * 100, tmp_path)
    with pytest.raises(InvalidArgument, match="no directory"):
        received(archive(("f", b""), ("f/x", b"")), tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing stays on disk"


def test_names_that_climb_stay_inside(tmp_path: Path) -> None:
    context = received(archive(("../../etc/passwd", b"x"), ("/abs", b"y")), tmp_path)
    assert context.children("") == ["abs", "etc"]


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts are device nodes, which need root")
def test_stage_tree_merges_layers(rootfs: StageTree) -> None:
    assert rootfs.children("") == ["existing", "real", "way"]
    assert rootfs.children("existing") == ["new", "old"]
    assert rootfs.node("gone") is None
    assert resolve(rootfs, "way/../existing/new") == "existing/new"
    with rootfs.open("existing/old") as file:
        assert file.read() == b"old"


@pytest.mark.parametrize(
    ("text", "mode", "result"),
    [("755", 0o600, 0o755), ("u+x", 0o644, 0o744), ("a-w", 0o666, 0o444), ("go=u", 0o700, 0o777), ("+X", 0o644, 0o644),
     ("u=rw,g=r,o=", 0o777, 0o640), ("u+s,o+t", 0o755, 0o5755), ("=rx", 0o222, 0o555), ("u+x,g+x", 0o600, 0o710)],
)  # fmt: skip
def test_modes(text: str, mode: int, result: int) -> None:
    assert parse_mode(text).apply(stat.S_IFREG | mode, False) == result


@given(st.text(max_size=12))
def test_any_mode_is_taken_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_mode(text).apply(0o644, False) <= 0o7777
    except InvalidArgument:
        return


def test_a_directory_does_not_replace_a_file_nor_a_file_a_directory(
    context: Context, rootfs: StageTree, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="cannot copy to non-directory: /existing/old"):
        copied(Request("/existing/old", ("dir",)), context, rootfs)
    (tmp_path / "other").mkdir()
    other = received(archive(("d/real", b"a file")), tmp_path / "other")
    with pytest.raises(InvalidArgument, match="cannot replace to directory /real with file"):
        copied(Request("/", ("d",)), other, rootfs)
    other.close()


def test_a_link_at_the_destination_is_followed(context: Context, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/to").symlink_to("/far/away")
    tree = StageTree([str(tmp_path / "root")])
    assert list(copied(Request("/to", ("a.txt",)), context, tree)) == ["far", "far/away"]
    tree.close()


def test_archives_and_stages_keep_owners(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("f")
        info.uid, info.gid = 7, 8
        tar.addfile(info)
    context, nothing = received(out.getvalue(), tmp_path), StageTree([])

    def owners(request: Request) -> dict[str, tuple[int, int]]:
        return {name: (m.node.uid, m.node.gid) for name, m in copied(request, context, nothing).items()}

    assert owners(Request("/x/", ("f",))) == {"x": (0, 0), "x/f": (0, 0)}
    assert owners(Request("/x/", ("f",), owner=None)) == {"x": (0, 0), "x/f": (7, 8)}
    assert owners(Request("/x/", ("f",), owner=Owner(1, 2), as_packed=True)) == {"x": (1, 2), "x/f": (7, 8)}
    context.close()
