"""The command line's display of progress: lines for pipes, ticks and bars for terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cli import bars, progress
from cli.errors import CommandFailed

PULL: list[dict[str, object]] = [
    {"status": "Pulling from library/busybox", "id": "latest"},
    {"status": "Pulling fs layer", "id": "abcdef123456", "progressDetail": {}},
    {"status": "Downloading", "id": "abcdef123456", "progressDetail": {"current": 10, "total": 2000}},
    {"status": "Downloading", "id": "abcdef123456", "progressDetail": {"current": 2000, "total": 2000}},
    {"status": "Download complete", "id": "abcdef123456", "progressDetail": {}},
    {"status": "Extracting", "id": "abcdef123456", "progressDetail": {"current": 2000, "total": 2000}},
    {"status": "Pull complete", "id": "abcdef123456", "progressDetail": {}},
    {"status": "Status: Downloaded newer image for busybox:latest"},
    {"aux": {"ID": "x"}},
]


def test_without_a_terminal_each_status_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress.show(PULL) == [{"ID": "x"}]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "latest: Pulling from library/busybox"
    assert lines.count("abcdef123456: Downloading") == 1
    assert lines[-1] == "Status: Downloaded newer image for busybox:latest"


def test_quiet_says_nothing_and_errors_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed, match="no space"):
        progress.show([*PULL, {"errorDetail": {"message": "no space"}, "error": "no space"}], quiet=True)
    assert capsys.readouterr().err == ""


def test_a_terminal_ends_with_a_tick_for_each_layer() -> None:
    out = io.StringIO()
    bars.draw(PULL[:-1], Console(file=out, force_terminal=True, width=100, color_system=None))
    text = out.getvalue()
    assert "✓ abcdef123456 Pull complete" in text
    assert "2kB" in text
    assert "Status: Downloaded newer image for busybox:latest" in text
