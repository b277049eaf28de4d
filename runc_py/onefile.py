"""The code of all modules in one file, so that a cold command opens one file and searches nothing.

Rule: it is a cache beside the ``.pyc`` files, of their kind and trust: made of the same sources, checked as they are (a
module's source must have the size and time it had), left alone where it cannot be written, and never needed.
``runc-py.sh`` looks for it by name and executes its head, which is ``_FINDER``, with ``place``, ``start`` and ``index``
defined.

The code is what the sources say without what nothing reads in a command: annotations, docstrings, and the imports for
type checkers. Modules that are used together are one unit: what one marshal holds, it holds each name of once, and
looking up names is most of the cost of reading code.

File: importlib's magic number (4 bytes), length of the head (4), the head, which is marshal of (code of ``_FINDER``,
index), then the units, each marshal of a tuple of code. Index: module → (offset and length of the unit, place in it,
source, seconds, size, is a package), offsets counted from the end of the head.
"""

from __future__ import annotations
import __future__ as library

import ast
import marshal
import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER  # importlib itself is larger

from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

_LENGTH = 4
_UNITS = (
    (
        *("", "errors", "light", "small_path", "small_os", "main", "documents", "options", "commands", "runtime"),
        *("lifecycle", "state", "names", "cgroups", "cgroups.base"),
    ),
    ("sockets", "messages"),
    (
        *("foreign", "syscalls", "seal", "capabilities", "paths", "process", "child", "hooks", "console", "namespaces"),
        *("shape", "spec"),
    ),
    ("create", "init", "mount_options", "operations", "prepare", "reaper", "rootfs", "cgroups.layout"),
    ("cgroups.v1", "cgroups.v1_limits", "cgroups.devices", "cgroups.limits"),
)
"""Modules that are used together, by names below the package: to look, to talk, to start processes, to make containers;
the rest is a unit each."""

_FINDER = """
import posix
from _frozen_importlib import ModuleSpec

units = {}

class OneFile:
    stale = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        entry = index.get(name)
        if entry is None:
            cls.stale = cls.stale or name.startswith("runc_py.")
            return None
        source = entry[3]
        try:
            info = posix.stat(source)
            if info[8] == entry[4] and info[6] == entry[5]:
                spec = ModuleSpec(name, cls, origin=source, is_package=entry[6])
                spec.has_location = True
                if entry[6]:
                    spec.submodule_search_locations.append(source.rpartition("/")[0])
                return spec
        except OSError:
            pass
        cls.stale = True
        return None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        offset, length, number = index[module.__name__][:3]
        unit = units.get(offset)
        if unit is None:
            fd = posix.open(place, posix.O_RDONLY | posix.O_CLOEXEC)
            units[offset] = unit = marshal.loads(posix.pread(fd, length, start + offset))
            posix.close(fd)
        exec(unit[number], module.__dict__)

sys.meta_path.insert(0, OneFile)
"""


def place_of(package: str) -> str:
    """Where the file is, for the interpreter that runs."""
    return f"{package}/__pycache__/onefile.{sys.implementation.cache_tag}"


def refresh() -> None:
    """Write the file if it is missing or a module of it has changed; a failure does not matter."""
    package = os.path.dirname(os.path.abspath(__file__))
    finder: Any = next((one for one in sys.meta_path if getattr(one, "__name__", "") == "OneFile"), None)
    current = not finder.stale if finder is not None else _is_ours(place_of(package))
    if sys.dont_write_bytecode or current:
        return
    if not os.access(f"{package}/__pycache__", os.W_OK):
        return
    try:
        data = _content(package)
        temporary = f"{place_of(package)}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, place_of(package))
    except (OSError, SyntaxError, ValueError):
        return


def _is_ours(place: str) -> bool:
    try:
        with open(place, "rb") as file:
            return file.read(len(MAGIC_NUMBER)) == MAGIC_NUMBER
    except OSError:
        return False


def _content(package: str) -> bytes:
    index: dict[str, tuple[int, int, int, str, int, int, bool]] = {}
    body = b""
    sources = _sources(package)
    for unit in _units(sources):
        codes = []
        entries = []
        for name in unit:
            source = sources[name]
            info = os.stat(source)
            with open(source, "rb") as file:
                codes.append(compiled(file.read(), source))
            entries.append((source, int(info.st_mtime), info.st_size, source.endswith("__init__.py")))
        data = marshal.dumps(tuple(codes))
        for number, (name, entry) in enumerate(zip(unit, entries, strict=True)):
            index[name] = (len(body), len(data), number, *entry)
        body += data
    finder = compile(_FINDER, "onefile", "exec", dont_inherit=True)
    head = marshal.dumps((finder, index))
    return MAGIC_NUMBER + len(head).to_bytes(_LENGTH, "little") + head + body


def _units(sources: dict[str, str]) -> list[tuple[str, ...]]:
    together = [tuple(f"runc_py.{name}".rstrip(".") for name in names) for names in _UNITS]
    there = [tuple(name for name in unit if name in sources) for unit in together]
    grouped = {name for unit in there for name in unit}
    return there + [(name,) for name in sources if name not in grouped]


def _sources(package: str) -> dict[str, str]:
    """Module → file, for all of the package."""
    found = {}
    for directory in (package, f"{package}/cgroups"):
        prefix = "runc_py" + directory.removeprefix(package).replace("/", ".")
        for name in sorted(os.listdir(directory)):
            if name.endswith(".py"):
                module = name.removesuffix(".py")
                found[prefix if module == "__init__" else f"{prefix}.{module}"] = f"{directory}/{name}"
    return found


def compiled(text: bytes, source: str) -> CodeType:
    """A module's code without annotations, docstrings and what is under ``if TYPE_CHECKING``."""
    tree = ast.fix_missing_locations(_Strip().visit(ast.parse(text, source)))
    # Annotations of records stay, and must not be evaluated: their names are not there.
    flags = library.annotations.compiler_flag
    code: CodeType = compile(tree, source, "exec", flags=flags, dont_inherit=True, optimize=2)
    return code


class _Strip(ast.NodeTransformer):
    """Takes away what a command does not need. Records (``light.NamedTuple``) keep the names of their fields."""

    def __init__(self) -> None:
        self._fields: list[ast.AnnAssign] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        arguments = node.args
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if one is not None:
                one.annotation = None
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._fields += [item for item in node.body if isinstance(item, ast.AnnAssign)]
        node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node in self._fields:
            node.annotation = ast.copy_location(ast.Constant(None), node)
            return node
        plain = ast.Pass() if node.value is None else ast.Assign([node.target], node.value)
        return ast.copy_location(plain, node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or [ast.copy_location(ast.Pass(), node)]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        node.names = [name for name in node.names if name.name != "TYPE_CHECKING"]
        return node if node.names and node.module != "__future__" else ast.copy_location(ast.Pass(), node)


def _is_text(item: ast.stmt) -> bool:
    """A docstring, of a class or of a name in it."""
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
