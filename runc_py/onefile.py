"""The code of all modules in one file, so that a cold command opens one file a module and searches nothing.

Rule: it is a cache beside the ``.pyc`` files, of their kind and trust: made of them, checked as they are (a module's
source must have the size and time it had), left alone where it cannot be written, and never needed. ``runc-py.sh``
looks for it by name and executes its head, which is ``_FINDER``, with ``place``, ``root`` and ``sys`` defined.

File: importlib's magic number (4 bytes), length of the head (4), the head, which is marshal of (code of ``_FINDER``,
index), then the modules' code, each marshalled. Index: module → (offset, length, source, seconds, size, is a package),
offsets counted from the end of the head.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER  # importlib itself is larger

from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_LENGTH = 4
_FINDER = """
import posix
from _frozen_importlib import ModuleSpec

class OneFile:
    stale = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        entry = index.get(name)
        if entry is None:
            cls.stale = cls.stale or name.startswith("runc_py.")
            return None
        _, _, source, seconds, size, package = entry
        try:
            info = posix.stat(source)
        except OSError:
            info = None
        if info is None or (int(info.st_mtime), info.st_size) != (seconds, size):
            cls.stale = True
            return None
        spec = ModuleSpec(name, cls, origin=source, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations.append(source.rpartition("/")[0])
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        offset, length = index[module.__name__][:2]
        fd = posix.open(place, posix.O_RDONLY | posix.O_CLOEXEC)
        code = posix.pread(fd, length, start + offset)
        posix.close(fd)
        exec(marshal.loads(code), module.__dict__)

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
    index: dict[str, tuple[int, int, str, int, int, bool]] = {}
    body = b""
    for name, source in _sources(package):
        info = os.stat(source)
        with open(source, "rb") as file:
            code = marshal.dumps(compile(file.read(), source, "exec", dont_inherit=True))
        index[name] = (len(body), len(code), source, int(info.st_mtime), info.st_size, source.endswith("__init__.py"))
        body += code
    finder = compile(_FINDER, "onefile", "exec", dont_inherit=True)
    head = marshal.dumps((finder, index))
    return MAGIC_NUMBER + len(head).to_bytes(_LENGTH, "little") + head + body


def _sources(package: str) -> list[tuple[str, str]]:
    """(module, file) of the package, and the one small module of the library that all of them begin with."""
    import __future__ as library

    found = [("__future__", os.path.abspath(library.__file__))]
    for directory in (package, f"{package}/cgroups"):
        prefix = "runc_py" + directory.removeprefix(package).replace("/", ".")
        for name in sorted(os.listdir(directory)):
            if name.endswith(".py"):
                module = name.removesuffix(".py")
                found.append((prefix if module == "__init__" else f"{prefix}.{module}", f"{directory}/{name}"))
    return found
