"""What makes a cold start cheap behaves as what it stands for: options as argparse's, JSON as json's, records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runc_py import documents, light, small_os, small_path
from runc_py.options import REMAINDER, Parser, _Unclear

LINES = (
    "c",
    "-b dir c",
    "--bundle=dir -d c",
    "c --bundle dir",
    "-n 5 c",
    "-n five c",
    "--num=7 --env A=1 -e B=2 c",
    "-d=1 c",
    "-bdir c",
    "--detach=x c",
    "--unknown c",
    "--bund dir c",
    "--bundle",
    "--bundle -d c",
    "",
    "-- c",
    "-n -5 c",
    "--format json c",
    "--format yaml c",
    "--format= c",
)


def declared(*, rest: bool) -> Parser:
    parser = Parser("prog", "prog [OPTION...]", "")
    parser.add_argument("-b", "--bundle", default=".")
    parser.add_argument("-d", "--detach", action="store_true")
    parser.add_argument("-n", "--num", type=int, default=0)
    parser.add_argument("-e", "--env", action="append", default=[])
    parser.add_argument("--format", choices=("json", "table"), default="table")
    parser.add_argument("id")
    if rest:
        parser.add_argument("args", nargs=REMAINDER)
    else:
        parser.add_argument("signal", nargs="?", default="TERM")
    return parser


def both(parser: Parser, line: list[str]) -> tuple[Any, Any]:
    """What the short way says (None: it leaves the line to argparse), and what argparse says (None: an error)."""
    try:
        short = parser._plain(line)
    except _Unclear:
        short = None
    try:
        return short, vars(parser._argparse().parse_args(line))
    except SystemExit:
        return short, None


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("line", LINES)
def test_the_short_way_says_what_argparse_says(line: str, rest: bool) -> None:
    for tail in ([], ["KILL"], ["sh", "-c", "x", "--", "-d"]):
        short, real = both(declared(rest=rest), [*line.split(), *tail])
        assert short is None or short == real


def test_plain_lines_take_the_short_way() -> None:
    short, _ = both(declared(rest=True), ["--bundle", "dir", "-d", "--env=A=1", "c", "sh", "-c", "x"])
    assert short is not None and short["args"] == ["sh", "-c", "x"] and short["env"] == ["A=1"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(_json)
def test_documents_are_jsons(value: Any) -> None:
    assert documents.dumps(value) == json.dumps(value)
    assert documents.dumps_indented(value) == json.dumps(value, indent=2)
    assert documents.dumps_indented(value, "\t") == json.dumps(value, indent="\t")
    assert documents.loads(json.dumps(value, indent=1).encode()) == value
    assert documents.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{} x", '{"a" 1}', "nul", '"\t"', "\xef"])
def test_what_is_no_json_is_refused_in_jsons_words(text: str) -> None:
    with pytest.raises(ValueError) as real:
        json.loads(text)
    with pytest.raises(ValueError) as ours:
        documents.loads(text)
    assert str(ours.value) == str(real.value)


class Point(light.NamedTuple):
    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        return self.x + self.y


def test_records_are_named_tuples() -> None:
    assert Point(1) == (1, 2) == Point(y=2, x=1)
    assert Point(1, 3).sum == 4 and Point(1)._replace(y=5) == Point(1, 5)
    assert repr(Point(1)) == "Point(x=1, y=2)" and Point(1)._asdict() == {"x": 1, "y": 2} and hash(Point(1))
    point: Any = Point
    for values, named in (((), {}), ((1, 2, 3), {}), ((1,), {"z": 2}), ((1,), {"x": 2})):
        with pytest.raises(TypeError):
            point(*values, **named)
    with pytest.raises(AttributeError):
        Point(1).x = 2  # type: ignore[misc] # on purpose


_parts = st.lists(st.sampled_from(["", ".", "..", "a", "bc", "d.e", "/", "//", "\udce9"]), max_size=6)


@settings(deadline=None)
@given(_parts, _parts)
def test_paths_are_posixpaths(first: list[str], second: list[str]) -> None:
    one, two = "/".join(first), "/".join(second)
    for path in (one, two, "/" + one, "//" + two):
        for name in ("normpath", "abspath", "split", "dirname", "basename"):
            assert getattr(small_path, name)(path) == getattr(os.path, name)(path), name
    assert small_path.join(one, two, "x") == os.path.join(one, two, "x")
    assert small_os.fsencode(one) == os.fsencode(one) and small_os.fsdecode(os.fsencode(one)) == one


def test_files_look_the_same(tmp_path: Path) -> None:
    small_os.makedirs(str(tmp_path / "a/b/c"), 0o700)
    small_os.makedirs(str(tmp_path / "a/b/c/"), exist_ok=True)
    with pytest.raises(FileExistsError):
        small_os.makedirs(str(tmp_path / "a/b/c"))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("a/../file")
    (tmp_path / "up").symlink_to("a/b")
    (tmp_path / "nowhere").symlink_to("missing/../there")
    (tmp_path / "round").symlink_to("round")
    for name in ("a", "file", "link", "up", "up/..", "up/../b/c/", "nowhere", "round", "missing", "file/x", "\0"):
        path = str(tmp_path / name)
        for question in ("exists", "isdir", "islink", "lexists", "realpath"):
            try:
                expected = getattr(os.path, question)(path)
            except ValueError:
                continue
            assert getattr(small_path, question)(path) == expected, (question, name)


def test_what_is_not_here_is_the_librarys_own() -> None:
    assert small_os.walk is os.walk and small_path.commonpath is os.path.commonpath
    code = "from runc_py import small_os; import os; assert small_os.environ == dict(os.environ)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


HEAVY = {"argparse", "collections", "contextlib", "dataclasses", "enum", "functools", "json", "re", "signal", "site"}
HEAVY |= {"socket", "subprocess", "typing", "ctypes", "struct", "os", "posixpath", "stat", "collections.abc"}


def test_a_hot_command_imports_nothing_heavy() -> None:
    root = str(Path(__file__).parents[3])
    code = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from runc_py import commands, create, foreground, lifecycle, main, seal\n"
        "from runc_py.cgroups import v1, v2\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_looking_at_a_container_imports_nothing_that_makes_one() -> None:
    root = str(Path(__file__).parents[3])
    code = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from runc_py import main\n"
        "main.run(['--root', '/nonexistent', 'state', 'x'])\n"
        "main.run(['--root', '/nonexistent', 'kill', 'x'])\n"
        "main.run(['--root', '/nonexistent', 'delete', 'x'])\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("container x does not exist") == 3
    assert not (HEAVY | {"runc_py.create", "runc_py.syscalls", "runc_py.spec"}) & set(done.stdout.split())


def test_descriptors_pass_through_our_sockets() -> None:
    ours, theirs = light.socketpair(light.SOCK_SEQPACKET)
    with ours, theirs:
        light.send_fds(ours, b"x", [0, 1])
        data, fds = light.recv_fds(theirs, 16, 2)
        assert data == b"x" and len(fds) == 2 and os.fstat(fds[0]).st_ino == os.fstat(0).st_ino
        for fd in fds:
            os.close(fd)
