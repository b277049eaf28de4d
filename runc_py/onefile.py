"""The code of all modules in one file, so that a cold command opens one file and searches nothing.

Rule: it is a cache beside the ``.pyc`` files, of their kind and trust: made of the same sources, checked as they are (a
module's source must have the size and time it had), left alone where it cannot be written, and never needed.
``runc-py.sh`` looks for it by name and executes the head's code, which is ``_FINDER``, with ``place``, ``data`` (its
beginning) and ``index`` defined.

The code is what the sources say without what nothing reads in a command: annotations, docstrings, and the imports for
type checkers. Modules that are used together are one unit. What one marshal holds, it holds each name of once, and
looking up names is most of the cost of reading code; and a unit's modules are made one after the other, in the order
that they are listed in, without asking the import system for each, which costs more than most modules do.

File: the interpreter's version (``sys.hexversion``, 4 bytes), length of the head (4), the head, which is marshal of
(code of ``_FINDER``, index), then the units, each marshal of a tuple of code. Index: module → (offset and length of the
unit, place in it, source, seconds, size, is a package), offsets counted from the end of the head; or, for a module of
the library, (file,).
"""

from __future__ import annotations
import __future__ as library

import ast
import marshal
import os
import sys

from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

_LENGTH = 4
_UNITS = (
    (
        *("", "errors", "small_path", "small_os", "light", "documents", "options", "main", "commands", "runtime"),
        *("names", "state", "cgroups.base", "cgroups", "lifecycle"),
    ),
    ("sockets", "messages"),
    ("foreign", "syscalls", "seal", "shape", "spec", "capabilities", "paths", "process", "child", "namespaces"),
    ("mount_options", "operations", "rootfs", "init", "cgroups.layout", "create", "foreground"),
    ("cgroups.v1",),
    ("cgroups.devices", "cgroups.limits", "cgroups.v1_limits"),
)
"""Modules that are used together, by names below the package: to look, to talk, to start processes, to make containers;
the rest is a unit each."""

_EXTENSIONS = ("_json", "_socket", "_ctypes")
"""Modules of the library that nearly all commands use: where this interpreter has them as files, they are loaded from
where they were found, and not looked for in each place there is."""

_FINDER = """
import gc
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader

gc.set_threshold(100_000)
size = int.from_bytes(data[4:8], "little")
units = {}
for name, entry in index.items():
    if len(entry) > 1:
        units.setdefault(entry[0], []).append(name)

class OneFile:
    stale = False
    loaded = {}  # offset of a unit -> its modules' code
    made = set()  # modules that were made with their unit

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        entry = index.get(name)
        if entry is None:
            cls.stale = cls.stale or name.startswith("runc_py.")
            return None
        if len(entry) == 1:
            return ModuleSpec(name, ExtensionFileLoader(name, entry[0]), origin=entry[0])
        if entry[0] not in cls.loaded and not cls.load(entry[0], entry[1]):
            cls.stale = True
            return None
        spec = ModuleSpec(name, cls, origin=entry[3], is_package=entry[6])
        spec.has_location = True
        if entry[6]:
            spec.submodule_search_locations.append(entry[3].rpartition("/")[0])
        return spec

    @classmethod
    def load(cls, offset, length):
        names = units[offset]
        for name in names:
            entry = index[name]
            try:
                info = posix.stat(entry[3])
            except OSError:
                return False
            if info[8] != entry[4] or info[6] != entry[5]:
                return False
        fd = posix.open(place, posix.O_RDONLY | posix.O_CLOEXEC)
        cls.loaded[offset] = codes = marshal.loads(posix.pread(fd, length, 8 + size + offset))
        posix.close(fd)
        modules = sys.modules
        early = []  # modules made before their package, which imports them
        for name, code in zip(names, codes):
            if name not in modules:  # else one before it has imported it
                modules[name] = module = type(sys)(name)
                parent, _, last = name.rpartition(".")
                values = module.__dict__
                values["__file__"] = source = index[name][3]
                values["__package__"] = parent
                if index[name][6]:
                    values["__package__"], values["__path__"] = name, [source.rpartition("/")[0]]
                cls.made.add(name)
                exec(code, values)
                if parent in modules:
                    setattr(modules[parent], last, module)
                elif parent:
                    early.append((parent, last, module))
        for parent, last, module in early:
            setattr(modules[parent], last, module)
        return True

    @staticmethod
    def create_module(spec):
        return sys.modules.get(spec.name)

    @classmethod
    def exec_module(cls, module):
        name = module.__name__
        if name not in cls.made:
            exec(cls.loaded[index[name][0]][index[name][2]], module.__dict__)

sys.meta_path.insert(0, OneFile)
from runc_py.main import main
"""


def place_of(package: str) -> str:
    """Where the file is, for the interpreter that runs."""
    return f"{package}/__pycache__/onefile.{sys.implementation.cache_tag}"


def refresh() -> None:
    """Write the file if it is missing or a module of it has changed; a failure does not matter."""
    package = os.path.dirname(os.path.abspath(__file__))
    finder: Any = next(
        (one for one in sys.meta_path if getattr(one, "__name__", "") == "OneFile"),
        None,
    )
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


def _version() -> bytes:
    return sys.hexversion.to_bytes(_LENGTH, "little")


def _is_ours(place: str) -> bool:
    try:
        with open(place, "rb") as file:
            return file.read(_LENGTH) == _version()
    except OSError:
        return False


def _content(package: str) -> bytes:
    from importlib.util import find_spec

    index: dict[str, tuple[int, int, int, str, int, int, bool] | tuple[str]] = {}
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
            entries.append(
                (
                    source,
                    int(info.st_mtime),
                    info.st_size,
                    source.endswith("__init__.py"),
                )
            )
        data = marshal.dumps(tuple(codes))
        for number, (name, entry) in enumerate(zip(unit, entries, strict=True)):
            index[name] = (len(body), len(data), number, *entry)
        body += data
    for name in _EXTENSIONS:
        spec = find_spec(name)
        if spec is not None and spec.has_location and spec.origin is not None:
            index[name] = (spec.origin,)
    finder = compile(_FINDER, "onefile", "exec", dont_inherit=True)
    head = marshal.dumps((finder, index))
    return _version() + len(head).to_bytes(_LENGTH, "little") + head + body


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
        for one in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ):
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
