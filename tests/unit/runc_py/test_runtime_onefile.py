"""The one file with all modules' code: it is used, it is never older than the sources, and nothing needs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "runc_py"
MODULES = "lib/python{}.{}/site-packages/runc_py".format(*sys.version_info)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An installation of the command in a directory of its own."""
    shutil.copytree(PACKAGE, tmp_path / MODULES, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bin").mkdir()
    shutil.copy(PACKAGE / "runc-py.sh", tmp_path / "bin/runc-py")
    (tmp_path / "bin/runc-py").chmod(0o755)
    (tmp_path / "bin/gantry").write_text(f"#!{sys.executable}\n")
    return tmp_path


def version(installed: Path) -> str:
    command = [str(installed / "bin/runc-py"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.split()[2]


def onefile(installed: Path) -> Path:
    return installed / MODULES / f"__pycache__/onefile.{sys.implementation.cache_tag}"


def change(installed: Path, *, later: bool) -> None:
    """Another version in the source, of the same size; ``later`` or not by the file's time."""
    source = installed / MODULES / "main.py"
    info = source.stat()
    source.write_text(source.read_text().replace('VERSION = "0.1.0"', 'VERSION = "9.9.9"'))
    os.utime(source, (info.st_atime, info.st_mtime + 5 * later))


def test_it_is_made_by_the_first_command_and_used_by_the_next(installed: Path) -> None:
    assert version(installed) == "0.1.0"
    assert onefile(installed).stat().st_mode & 0o777 == 0o644
    change(installed, later=False)
    assert version(installed) == "0.1.0", "only the one file still knows the old source"
    change(installed, later=True)
    assert version(installed) == "9.9.9"


def test_it_is_made_anew_when_a_source_has_changed(installed: Path) -> None:
    version(installed)
    before = onefile(installed).stat().st_ino
    assert version(installed) == "0.1.0"
    assert onefile(installed).stat().st_ino == before
    change(installed, later=True)
    assert version(installed) == "9.9.9"
    assert onefile(installed).stat().st_ino != before
    assert sorted(path.name for path in onefile(installed).parent.glob("onefile.*[!c]")) == [onefile(installed).name]


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"garbage" * 50, (1 << 40).to_bytes(8, "little")])
def test_a_broken_one_does_no_harm(installed: Path, content: bytes) -> None:
    version(installed)
    onefile(installed).write_bytes(content)
    assert version(installed) == "0.1.0"
    assert onefile(installed).stat().st_size > 100_000, "it was not made anew"


def test_a_place_that_cannot_be_written_does_no_harm(installed: Path) -> None:
    cache = installed / MODULES / "__pycache__"
    cache.write_text("a file, so that nothing can be made in it")
    assert version(installed) == "0.1.0"
    assert cache.is_file()
