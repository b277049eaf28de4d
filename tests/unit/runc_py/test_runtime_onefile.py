"""The one file with all modules' code: it is used, it is never older than the sources, and nothing needs it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runc_py import onefile as maker

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


def test_every_module_comes_from_it_as_it_comes_from_its_source(installed: Path) -> None:
    version(installed)
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    code = f"""
import importlib
finder = sys.meta_path[0]
made = finder.made.copy()
for name in {sorted(names)!r}:
    module = importlib.import_module(name)
    assert module.__name__ == name and module.__file__.startswith(prefix), name
    assert module.__package__ == (name if hasattr(module, "__path__") else name.rpartition(".")[0]), name
    assert name in index and not module.__doc__, name
    parent, _, last = name.rpartition(".")
    assert not parent or getattr(sys.modules[parent], last) is module, name
assert not finder.stale
print(*sorted(made))
"""
    program = (PACKAGE / "runc-py.sh").read_text().partition("-c '\n")[2].rpartition("\nmain()\n")[0]
    command = [sys.executable, "-I", "-S", "-c", program + code, str(installed), "runc-py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = done.stdout.split()
    assert "runc_py.lifecycle" in first, "what all commands use is not made together"
    assert "runc_py.create" not in first, "what few commands use is made for all"


def test_the_units_are_whole_and_in_order() -> None:
    """A module stands behind those that it imports when it is made: the import system is asked for none of them."""
    unit_of = {name: number for number, unit in enumerate(maker._UNITS) for name in unit}
    for unit in maker._UNITS:
        for place, name in enumerate(unit):
            path = PACKAGE / f"{name.replace('.', '/')}.py" if name else PACKAGE / "__init__.py"
            source = path if path.exists() else PACKAGE / name.replace(".", "/") / "__init__.py"
            for needed in top_imports(source):
                if unit_of.get(needed) == unit_of[name]:
                    assert needed in unit[:place], f"{name} imports {needed}"


def top_imports(source: Path) -> set[str]:
    """Modules of the package that a module imports when it is made, by names below the package."""
    tree = ast.parse(stripped(source))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("runc_py"):
            base = (node.module or "").removeprefix("runc_py").lstrip(".")
            found |= {base} if base else {alias.name for alias in node.names}
    return found


def stripped(source: Path) -> str:
    """A module's text as it is compiled."""
    return ast.unparse(maker._Strip().visit(ast.parse(source.read_text())))


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
