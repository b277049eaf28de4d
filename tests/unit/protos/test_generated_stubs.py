"""The committed stubs are what the compiler makes of the .proto files."""

from __future__ import annotations

from pathlib import Path

from protos.generate import SOURCES, generate


def test_stubs_are_fresh(tmp_path: Path) -> None:
    generate(tmp_path)
    for source in SOURCES:
        made = sorted((tmp_path / "protos" / source.name).iterdir())
        assert made
        stale = [path.name for path in made if path.read_bytes() != (source / path.name).read_bytes()]
        assert stale == [], "run python -m protos.generate"
