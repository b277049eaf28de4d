"""The tree itself: linters, types, import contracts, sizes. One command says whether it is sound."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
ROOMS = ("oci", "protos", "runc_py", "shim", "containerd_py", "engine", "cli", "deploy")
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
MAX_LINES = 600
MAX_FUNCTION = 80


def program(name: str, *arguments: str) -> None:
    """Run a development tool of this interpreter's environment; its output is the failure's text."""
    path = Path(sys.executable).with_name(name)
    done = subprocess.run([str(path), *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def sources() -> list[Path]:
    """Hand-written modules of the rooms."""
    found = (path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
    return sorted(path for path in found if not path.name.endswith(GENERATED))


def test_ruff_has_nothing_to_say() -> None:
    program("ruff", "check", ".")


def test_format_is_ruffs() -> None:
    program("ruff", "format", "--check", ".")


@pytest.mark.timeout(600)
def test_types_hold() -> None:
    program("mypy")


def test_rooms_import_one_way() -> None:
    program("lint-imports", "--no-cache")


def test_files_stay_small() -> None:
    long = {str(p.relative_to(REPOSITORY)): n for p in sources() if (n := p.read_text().count("\n")) > MAX_LINES}
    assert long == {}


def test_functions_stay_short() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION:
                    long[f"{path.relative_to(REPOSITORY)}:{node.name}"] = length
    assert long == {}


def test_every_module_states_its_rule() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for path in sources()
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_no_path_of_a_developers_machine_is_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing to list")
    # Root's home is a name that containers have as well.
    places = [f"{place}/" for place in (REPOSITORY, Path.home()) if str(place) != "/root"]
    for name in listed.stdout.decode().split("\0"):
        path = REPOSITORY / name
        if name and path.is_file():
            text = path.read_bytes()
            assert not any(place.encode() in text for place in places), name
