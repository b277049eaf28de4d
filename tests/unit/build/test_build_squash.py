"""Squashing: the difference of two file systems out of overlay's directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.build import squash
from oci.image import History

pytestmark = pytest.mark.root


def layer(root: Path, name: str, files: dict[str, str | None]) -> str:
    """A directory of overlay's: text for files, None for a whiteout."""
    base = root / name
    base.mkdir()
    for path, text in files.items():
        place = base / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            place.mkdir(exist_ok=True)
        elif text is None:
            os.mknod(place, 0o20000, os.makedev(0, 0))
        else:
            place.write_text(text)
    return str(base)


def squashed(directories: list[str], below: int) -> dict[str, str]:
    """Members by path, with the content of files."""
    found = {}
    with squash.changes(directories, below) as members:
        for member in members:
            text = "dir" if member.node.is_dir else ""
            if member.tree is not None and member.node.is_file:
                with member.tree.open(member.source) as file:
                    text = file.read().decode()
            found[member.path] = text
    return found


def test_only_what_is_different_in_the_end(tmp_path: Path) -> None:
    base = layer(tmp_path, "base", {"etc/a": "1", "etc/b": "2", "old/x": "3", "old/y": "4", "same": "5"})
    first = layer(tmp_path, "first", {"etc/a": "new", "tmp/secret": "s", "old": None})
    second = layer(tmp_path, "second", {"tmp/secret": None, "etc/b": None, "made": "6"})
    assert squashed([second, first, base], 1) == {
        "etc": "dir", "etc/a": "new", "etc/.wh.b": "", "tmp": "dir", "made": "6", ".wh.old": "",
    }  # fmt: skip


def test_a_directory_that_was_replaced_hides_what_it_held(tmp_path: Path) -> None:
    base = layer(tmp_path, "base", {"d/kept": "1", "d/gone": "2"})
    first = layer(tmp_path, "first", {"d/kept": "other"})
    os.setxattr(f"{first}/d", "trusted.overlay.opaque", b"y")
    assert squashed([first, base], 1) == {"d": "dir", "d/kept": "other", "d/.wh.gone": ""}


def test_without_a_base_everything_is_new(tmp_path: Path) -> None:
    assert squashed([layer(tmp_path, "b", {"x": None}), layer(tmp_path, "a", {"x": "1", "y": "2"})], 0) == {"y": "2"}


def test_history_keeps_the_base_and_says_what_was_merged() -> None:
    before = (History(created_by="base"), History(created_by="RUN a"), History(created_by="ENV", empty_layer=True))
    after = squash.history(before, 1, "sha256:base")
    assert [step.empty_layer for step in after] == [False, True, True, False]
    assert after[-1].comment == "merge of a build to sha256:base"
