"""A build context as a tar stream: what ``.dockerignore`` names stays here, the rest is read while it is sent.

Rule: equal files give equal bytes of the archive; owners of this machine are left out, as docker leaves them.
"""

from __future__ import annotations

import os
import secrets
import stat
import tarfile
from collections.abc import Iterator

from cli.errors import CommandFailed
from oci.errors import InvalidArgument
from oci.ignorefile import IgnoreRules

CHUNK = 1 << 20
IGNORE_FILE = ".dockerignore"
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE,
}  # fmt: skip


class Context:
    """The directory ``root``. ``dockerfile`` is its name in the archive; ``extra`` is its text if it lies elsewhere."""

    def __init__(self, root: str, dockerfile: str | None, text: bytes | None = None) -> None:
        """``dockerfile`` is a path as given on the command line; ``text`` is one that came on standard input."""
        self._root = root
        self.extra = text
        self.dockerfile = self._named(dockerfile)
        self._rules = self._read_rules()

    def _named(self, given: str | None) -> str:
        if self.extra is not None:
            return f".dockerfile.{secrets.token_hex(10)}"
        path = given if given is not None else os.path.join(self._root, "Dockerfile")
        if not os.path.isfile(path) and given is not None and os.path.isfile(os.path.join(self._root, given)):
            path = os.path.join(self._root, given)
        if not os.path.isfile(path):
            raise CommandFailed(f"no Dockerfile: {path} is not a file (-f names another one)")
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(self._root))
        if not relative.startswith("../"):
            return relative
        self.extra = _content(path)
        return f".dockerfile.{secrets.token_hex(10)}"

    def _read_rules(self) -> IgnoreRules:
        for name in (f"{self.dockerfile}{IGNORE_FILE}", IGNORE_FILE):
            path = os.path.join(self._root, name)
            if os.path.isfile(path):
                self._keep = {self.dockerfile, name}
                try:
                    return IgnoreRules(_content(path).decode(errors="replace").splitlines())
                except InvalidArgument as error:
                    raise CommandFailed(str(error)) from None
        self._keep = {self.dockerfile}
        return IgnoreRules(())

    def archive(self) -> Iterator[bytes]:
        """The tar, piece by piece. Raises ``CommandFailed`` for what cannot be read."""
        waiting: list[bytes] = []
        size = 0
        for piece in self._pieces():
            waiting.append(piece)
            size += len(piece)
            if size >= CHUNK:
                yield b"".join(waiting)
                waiting, size = [], 0
        yield b"".join(waiting)

    def _pieces(self) -> Iterator[bytes]:
        for relative, status in self._walk(""):
            yield from _member(os.path.join(self._root, relative), relative, status)
        if self.extra is not None:
            info = tarfile.TarInfo(self.dockerfile)
            info.size = len(self.extra)
            yield info.tobuf(tarfile.PAX_FORMAT) + self.extra + b"\0" * (-info.size % tarfile.BLOCKSIZE)
        yield b"\0" * (2 * tarfile.BLOCKSIZE)

    def _walk(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        """What is sent below ``directory``, parents first, names sorted."""
        try:
            entries = sorted(os.scandir(os.path.join(self._root, directory)), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(os.path.join(self._root, directory), error) from None
        for entry in entries:
            path = f"{directory}/{entry.name}" if directory else entry.name
            ignored = bool(self._rules) and path not in self._keep and self._rules.ignored(path)
            status = entry.stat(follow_symlinks=False)
            if not ignored and not stat.S_ISSOCK(status.st_mode):
                yield path, status
            if stat.S_ISDIR(status.st_mode) and (not ignored or self._wanted_below(path)):
                yield from self._walk(path)

    def _wanted_below(self, directory: str) -> bool:
        """Whether something in an ignored directory may be sent all the same."""
        return self._rules.may_hold_exceptions(directory) or any(
            path.startswith(f"{directory}/") for path in self._keep
        )


def _member(path: str, name: str, status: os.stat_result) -> Iterator[bytes]:
    kind = stat.S_IFMT(status.st_mode)
    info = tarfile.TarInfo(name + ("/" if kind == stat.S_IFDIR else ""))
    info.type, info.mode, info.mtime = _KINDS[kind], stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if kind == stat.S_IFLNK:
        info.linkname = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if kind != stat.S_IFREG:
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        return
    try:
        with open(path, "rb", buffering=0) as file:
            info.size = left = os.fstat(file.fileno()).st_size
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    raise CommandFailed(f"{path} became shorter while it was read: build again")
                left -= len(data)
                yield data
    except OSError as error:
        raise _unreadable(path, error) from None
    yield b"\0" * (-info.size % tarfile.BLOCKSIZE)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> CommandFailed:
    return CommandFailed(f"cannot read {path} of the build context: {error.strerror}; {IGNORE_FILE} can leave it out")
