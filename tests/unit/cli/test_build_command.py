"""gantry build: what is packed, what is asked for, what is shown."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.buildlive import live
from cli.buildview import STEP, show
from cli.commands import build
from cli.errors import CommandFailed
from cli.packing import Context


def tree(root: Path, *names: str) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return str(root)


def names(context: Context) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(context.archive()))) as tar:
        return [member.name for member in tar]


def test_dockerignore_is_honoured_and_the_dockerfile_sent_all_the_same(tmp_path: Path) -> None:
    root = tree(tmp_path, "Dockerfile", "a", "d/in", "d/out", "e/f")
    (tmp_path / ".dockerignore").write_text("*\n!d/in\n")
    assert names(Context(root, None)) == [".dockerignore", "Dockerfile", "d/in"]


def test_own_ignore_file_of_a_dockerfile_comes_first(tmp_path: Path) -> None:
    root = tree(tmp_path, "sub/b.Dockerfile", "a", "c")
    (tmp_path / ".dockerignore").write_text("a\n")
    (tmp_path / "sub/b.Dockerfile.dockerignore").write_text("c\nsub\n")
    context = Context(root, str(tmp_path / "sub/b.Dockerfile"))
    assert context.dockerfile == "sub/b.Dockerfile"
    assert names(context) == [".dockerignore", "a", "sub/b.Dockerfile", "sub/b.Dockerfile.dockerignore"]


def test_members_keep_kind_mode_and_time_but_not_their_owner(tmp_path: Path) -> None:
    root = tree(tmp_path, "Dockerfile", "d/file")
    os.symlink("d/file", tmp_path / "link")
    os.chmod(tmp_path / "d/file", 0o4750)
    os.utime(tmp_path / "d/file", (1000, 1000))
    with tarfile.open(fileobj=io.BytesIO(b"".join(Context(root, None).archive()))) as tar:
        file, link = tar.getmember("d/file"), tar.getmember("link")
        assert (file.mode, file.mtime, file.uid, file.gid) == (0o4750, 1000, 0, 0)
        assert link.issym() and link.linkname == "d/file"
        assert tar.getmember("d").isdir()


def test_a_dockerfile_from_elsewhere_goes_under_a_name_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path / "context", "a")
    (tmp_path / "Other").write_text("FROM x")
    context = Context(root, str(tmp_path / "Other"))
    assert context.dockerfile.startswith(".dockerfile.")
    assert names(context) == ["a", context.dockerfile]
    assert names(Context(root, None, b"FROM y"))[1].startswith(".dockerfile.")


def test_no_dockerfile_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="no Dockerfile"):
        Context(str(tmp_path), None)


def test_options_become_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "there")
    arguments = build.parser("build").parse_args(
        [
            "-t",
            "a",
            "-t",
            "b",
            "--build-arg",
            "X=1",
            "--build-arg",
            "HERE",
            "--build-arg",
            "GONE",
            "--shm-size",
            "64m",
            ".",
        ]
    )
    query = build._query(arguments)
    assert [value for name, value in query if name == "t"] == ["a", "b"]
    assert dict(query)["buildargs"] == '{"X": "1", "HERE": "there", "GONE": null}'
    assert dict(query)["shmsize"] == str(64 << 20)


def event(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": STEP, "aux": {"number": number, "total": 2, **fields}}


def story(*, failing: bool) -> Iterator[dict[str, Any]]:
    yield event(1, name="[stage-0 1/2] FROM busybox")
    yield event(1, state="cached")
    yield event(2, name="[stage-0 2/2] RUN make")
    yield event(2, output="one\ntw")
    yield event(2, output="o\nthree")
    if failing:
        yield event(2, state="failed")
        yield {"id": STEP, "aux": {"excerpt": "Dockerfile:2"}}
        yield {"errorDetail": {"code": 7, "message": "returned 7"}, "error": "returned 7"}
    else:
        yield event(2, state="done")
        yield {"aux": {"ID": "sha256:abc"}}


def test_plain_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(story(failing=False), "plain") == "sha256:abc"
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["#1 [stage-0 1/2] FROM busybox", "#1 CACHED", "#2 [stage-0 2/2] RUN make"]
    assert [line.split(" ", 2)[2] for line in lines[3:6]] == ["one", "two", "three"]
    assert lines[6].startswith("#2 DONE ")


def test_a_failed_step_is_shown_again_and_gives_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed) as caught:
        show(story(failing=True), "plain")
    assert caught.value.status == 7
    assert capsys.readouterr().err.splitlines()[-6:] == [
        " > [stage-0 2/2] RUN make:", "one", "two", "three", "-" * 20, "Dockerfile:2",
    ]  # fmt: skip


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(story(failing=False), "quiet") == "sha256:abc"
    assert capsys.readouterr().err == ""


def test_live_display_ends_with_every_step_marked() -> None:
    out = io.StringIO()
    assert live(story(failing=False), Console(file=out, force_terminal=True, width=60, height=30)) == "sha256:abc"
    last = out.getvalue().rpartition("[+] Built")[2]
    assert "cached" in last and "RUN make" in last and "(2/2)" in last


def test_live_display_shows_the_failure_below() -> None:
    out = io.StringIO()
    with pytest.raises(CommandFailed):
        live(story(failing=True), Console(file=out, force_terminal=True, width=60, height=30))
    assert "✗" in out.getvalue() and out.getvalue().rstrip().endswith("Dockerfile:2")
