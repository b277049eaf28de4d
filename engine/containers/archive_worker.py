"""The process that touches a container's files for ``docker cp``, ``export`` and ``HEAD archive``.

Rule: it enters the container's root before it looks at any path, and can load no code after that: everything is
imported, then the import machinery is taken away, and no user names are looked up (CVE-2019-14271 was a library loaded
from inside the root). It runs as a script of its own, standard library only, one request per process.

Request (``argv[1]``, JSON): ``op`` (stat, get, put, export), ``path``, and the root: ``pid`` of a running container, or
``rootfs`` mounts, ``points`` (source, destination, rw) and ``directory`` to mount them over in a namespace of its own.
Answer: one JSON line on stdout, ``{"stat": …}`` or ``{"error": KIND, "message": …}``; after it the archive for get and
export. A put reads the archive from stdin and answers when it is unpacked.
"""

from __future__ import annotations

import bz2
import contextlib
import ctypes
import errno
import gzip
import json
import lzma
import os
import shutil
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterable
from typing import IO, Any, cast

_PRELOADED = (bz2, gzip, lzma, zlib)

_libc = ctypes.CDLL(None, use_errno=True)
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _CLONE, _CLOEXEC = -100, 0x1000, 0x8000, 1, os.O_CLOEXEC
_MOVE_EMPTY = 4
_NEWNS = 0x20000
_MS_RDONLY, _MS_REC, _MS_PRIVATE, _MS_BIND = 1, 16384, 1 << 18, 4096
_PAGE = 4000
_XATTR = "SCHILY.xattr."
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFBLK: 1 << 26, stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24, stat.S_IFCHR: 1 << 26 | 1 << 21,
}  # fmt: skip


_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_KINDS = {
    **dict.fromkeys((*_NOT_THERE, errno.EEXIST, errno.EISDIR, errno.EINVAL, errno.ENOTEMPTY, errno.EXDEV), "invalid"),
    **dict.fromkeys((errno.EROFS, errno.EPERM, errno.EACCES), "denied"),
}
"""Errors that are the client's: what it sent does not fit what is there."""


class Refused(Exception):
    """An answer for the client: ``kind`` is ``notfound``, ``invalid`` or ``denied``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data))
    _check(_libc.mount(*arguments), f"mount {kind} on {target}")


def _open_tree(path: str, recursive: bool) -> int:
    flags = _CLONE | _CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(
        _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)), f"clone the mount at {path}"
    )


# Entering the root


def enter(request: dict[str, Any]) -> None:
    """Make the container's root this process's root."""
    if request.get("pid"):
        if request["op"] == "export":
            _enter_bare(request["pid"])
        else:
            os.chroot(f"/proc/{request['pid']}/root")
        os.chdir("/")
        return
    _check(_libc.unshare(_NEWNS), "unshare the mount namespace")
    _mount("", "/", "", _MS_REC | _MS_PRIVATE, "")
    trees = [] if request["op"] == "export" else [_tree_of(point) for point in request["points"]]
    target = request["directory"]
    for mount in request["rootfs"]:
        _mount_rootfs(mount, target)
    os.chroot(target)
    os.chdir("/")
    for point, (tree, is_directory) in zip(request["points"], trees, strict=False):
        _place(tree, is_directory, point["destination"])


def _enter_bare(pid: int) -> None:
    """The root file system alone, without what is mounted on it."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.setns(namespace, _NEWNS), f"enter the mount namespace of {pid}")
    os.fchdir(_open_tree("/", False))
    os.chroot(".")


def _mount_rootfs(mount: dict[str, Any], target: str) -> None:
    flags, data = 0, []
    for option in mount["options"]:
        if option in ("bind", "rbind"):
            flags |= _MS_BIND | (_MS_REC if option == "rbind" else 0)
        elif option not in ("ro", "rw"):
            data.append(option)
    text = ",".join(data)
    if len(text) > _PAGE:
        text = _shortened(data)
    _mount(mount["source"], target, "" if flags & _MS_BIND else mount["type"], flags, text)


def _shortened(options: list[str]) -> str:
    """Layer directories relative to their common parent, for mount(2) takes one page of options."""
    lower = next(option for option in options if option.startswith("lowerdir=")).removeprefix("lowerdir=").split(":")
    common = os.path.commonpath(lower)
    os.chdir(common)
    short = ":".join(os.path.relpath(path, common) for path in lower)
    return ",".join(f"lowerdir={short}" if o.startswith("lowerdir=") else o for o in options)


def _tree_of(point: dict[str, Any]) -> tuple[int, bool]:
    return _open_tree(point["source"], True), os.path.isdir(point["source"])


def _place(tree: int, is_directory: bool, destination: str) -> None:
    """Mount ``tree`` at ``destination``, which is resolved inside the root; made when it is not there."""
    if not os.path.exists(destination):
        if is_directory:
            os.makedirs(destination, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(destination), exist_ok=True)
            os.close(os.open(destination, os.O_CREAT | os.O_WRONLY, 0o644))
    number = _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(destination), ctypes.c_uint(_MOVE_EMPTY))
    _check(number, f"mount on {destination}")
    os.close(tree)


def seal() -> None:
    """From here on nothing can be imported and nobody is looked up in files."""
    tarfile.pwd = None  # type: ignore[attr-defined]  # the module looks them up only where it has them
    tarfile.grp = None  # type: ignore[attr-defined]  # as above
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


# What is done there


def absolute(path: str) -> str:
    """``path`` under ``/``; a trailing slash or ``/.`` stays, for it says that a directory is meant."""
    if "\0" in path:
        raise Refused("invalid", f"invalid path {path!r}: it holds a null byte")
    clean = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    clean = os.path.normpath(clean)
    if clean != "/" and path.endswith("/."):
        return clean + "/."
    if clean != "/" and path.endswith("/"):
        return clean + "/"
    return clean


def base_name(path: str) -> str:
    """Go's ``filepath.Base``."""
    return os.path.basename(path.rstrip("/")) or "/"


def stat_document(path: str) -> dict[str, Any]:
    """``X-Docker-Container-Path-Stat`` of ``path``."""
    try:
        found = os.lstat(path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise Refused("notfound", path) from None
    target = ""
    if stat.S_ISLNK(found.st_mode):
        target = os.path.realpath(path)
    return {
        "name": base_name(path),
        "size": found.st_size,
        "mode": go_mode(found.st_mode),
        "mtime_ns": found.st_mtime_ns,
        "linkTarget": target,
    }


def go_mode(mode: int) -> int:
    """A mode as Go's ``os.FileMode`` has it."""
    out = mode & 0o777 | _GO_KINDS.get(stat.S_IFMT(mode), 0)
    for bit, value in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if mode & bit:
            out |= value
    return out


class Packer:
    """Writes one resource as a tar stream, named after its base.

    Of what is mounted below it only ``points`` (the container's volumes) are gone into, not ``/proc`` and its like.
    """

    def __init__(self, sink: IO[bytes], points: Iterable[str] = ()) -> None:
        self._points = tuple(f"{point.rstrip('/')}/" for point in points)
        options: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "bufsize": 1 << 18}
        self._tar = tarfile.open(fileobj=sink, mode="w|", **options)  # noqa: SIM115 - ``close`` ends it
        self._links: dict[tuple[int, int], str] = {}

    def add(self, path: str, name: str) -> None:
        """``path`` and everything below it, as ``name``. What disappears meanwhile is left out."""
        pending = [(path, name, 0)]
        while pending:
            at, named, device = pending.pop()
            try:
                found = os.lstat(at)
                self._add_one(at, named, found)
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode) and (device in (0, found.st_dev) or f"{at}/".startswith(self._points)):
                prefix = named if named.endswith("/") or not named else f"{named}/"
                try:
                    children = sorted(os.listdir(at), reverse=True)
                except OSError:
                    continue
                below = at.rstrip("/")
                pending += [(f"{below}/{child}", f"{prefix}{child}", found.st_dev) for child in children]

    def _add_one(self, path: str, name: str, found: os.stat_result) -> None:
        info = tarfile.TarInfo(name)
        info.mode, info.uid, info.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
        info.mtime = int(found.st_mtime)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            self._add_file(path, info, found)
            return
        if kind == stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
        elif kind == stat.S_IFLNK:
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        elif kind == stat.S_IFIFO:
            info.type = tarfile.FIFOTYPE
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        else:
            return  # sockets have no form in an archive
        self._tar.addfile(info)

    def _add_file(self, path: str, info: tarfile.TarInfo, found: os.stat_result) -> None:
        if found.st_nlink > 1:
            first = self._links.setdefault((found.st_dev, found.st_ino), info.name)
            if first != info.name:
                info.type, info.linkname = tarfile.LNKTYPE, first
                self._tar.addfile(info)
                return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        with open(descriptor, "rb") as file:
            now = os.fstat(descriptor)
            if not stat.S_ISREG(now.st_mode):
                return
            info.size = now.st_size
            with contextlib.suppress(OSError):
                for key in os.listxattr(descriptor):
                    if key == "security.capability":
                        value = os.getxattr(descriptor, key)
                        info.pax_headers = {_XATTR + key: value.decode("utf-8", "surrogateescape")}
            self._tar.addfile(info, cast("IO[bytes]", _Padded(file, info.size)))

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()


class _Padded:
    """Exactly ``size`` bytes of a file that may shrink while it is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, limit: int) -> bytes:
        try:
            data = self._file.read(min(limit, self._left))
        except OSError:  # its place in the archive is taken already
            data = b""
        if not data and self._left:
            data = bytes(min(limit, self._left))
        self._left -= len(data)
        return data


class Unpacker:
    """Unpacks a tar stream into a directory with ``docker cp``'s rules."""

    def __init__(self, target: str, *, keep_kinds: bool, owner: tuple[int, int] | None) -> None:
        self._target = target
        self._keep_kinds = keep_kinds
        self._owner = owner
        self._directories: list[tuple[str, tarfile.TarInfo]] = []

    def unpack(self, source: IO[bytes]) -> None:
        """All members, then the times of directories."""
        try:
            archive = tarfile.open(fileobj=source, mode="r|*", bufsize=1 << 18)  # noqa: SIM115 - the process ends with it
        except tarfile.ReadError as error:
            if "empty" in str(error):
                return
            raise Refused("invalid", f"cannot read the archive: {error}") from None
        try:
            for member in archive:
                self._member(archive, member)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise Refused("invalid", f"cannot read the archive: {error}") from None
        for path, member in reversed(self._directories):
            with contextlib.suppress(OSError):
                os.utime(path, (member.mtime, member.mtime))

    def _path(self, name: str) -> str:
        clean = os.path.normpath("/" + name).lstrip("/")
        return f"{self._target.rstrip('/')}/{clean}" if clean else self._target

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        if path == self._target:
            return
        parent = os.path.dirname(path)
        if not os.path.lexists(parent):
            os.makedirs(parent, mode=0o755, exist_ok=True)
        self._make_room(path, member)
        self._make(archive, path, member)
        self._finish(path, member)

    def _make_room(self, path: str, member: tarfile.TarInfo) -> None:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        there, comes = stat.S_ISDIR(found.st_mode), member.isdir()
        if self._keep_kinds and there and not comes:
            raise Refused("invalid", f'cannot overwrite directory "{path}" with non-directory "{self._target}"')
        if self._keep_kinds and comes and not there:
            raise Refused("invalid", f'cannot overwrite non-directory "{path}" with directory "{self._target}"')
        if there and comes:
            return
        if there:
            shutil.rmtree(path)
        else:
            os.unlink(path)

    def _make(self, archive: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        if member.isdir():
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            self._directories.append((path, member))
        elif member.isreg():
            source = archive.extractfile(member)
            assert source is not None
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 18)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            os.link(self._path(member.linkname), path, follow_symlinks=False)
        elif member.isfifo():
            os.mkfifo(path)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, 0o600 | kind, os.makedev(member.devmajor, member.devminor))

    def _finish(self, path: str, member: tarfile.TarInfo) -> None:
        if member.islnk():
            return
        uid, gid = self._owner or (member.uid, member.gid)
        os.lchown(path, uid, gid)
        if member.issym():
            os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
            return
        os.chmod(path, stat.S_IMODE(member.mode))
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                with contextlib.suppress(OSError):
                    os.setxattr(path, key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
        os.utime(path, (member.mtime, member.mtime))


def check_target(request: dict[str, Any], path: str) -> str:
    """The directory to unpack into, checked as Docker does."""
    resolved = os.path.realpath(path)
    if not os.path.exists(resolved):
        raise Refused("notfound", path)
    if not os.path.isdir(resolved):
        raise Refused("invalid", "extraction point is not a directory")
    inside = [p for p in request["points"] if f"{resolved}/".startswith(f"{p['destination'].rstrip('/')}/")]
    if inside:
        if not max(inside, key=lambda p: len(p["destination"]))["rw"]:
            raise Refused("invalid", "mounted volume is marked read-only")
    elif request["readonly"]:
        raise Refused("invalid", "container rootfs is marked read-only")
    return resolved


def serve(request: dict[str, Any], source: IO[bytes], sink: IO[bytes]) -> None:
    """Do what was asked for, inside the root."""

    def answer(document: dict[str, Any]) -> None:
        sink.write(json.dumps(document).encode() + b"\n")
        sink.flush()

    path = absolute(request.get("path") or "/")
    if request["op"] == "put":
        target = check_target(request, path)
        owner = tuple(request["owner"]) if request.get("owner") else None
        Unpacker(target, keep_kinds=request["keep_kinds"], owner=cast("tuple[int, int] | None", owner)).unpack(source)
        answer({"stat": None})
        return
    document = stat_document(path)
    answer({"stat": document})
    if request["op"] == "stat":
        return
    packer = Packer(sink, [point["destination"] for point in request["points"]])
    if request["op"] == "export":
        for name in sorted(os.listdir("/")):
            packer.add(f"/{name}", name)
    else:
        packer.add(path, document["name"])
    packer.close()
    sink.flush()


def main() -> None:
    """One request."""
    request = json.loads(sys.argv[1])
    sink = sys.stdout.buffer
    try:
        enter(request)
        seal()
        serve(request, sys.stdin.buffer, sink)
    except Refused as error:
        sink.write(json.dumps({"error": error.kind, "message": str(error)}).encode() + b"\n")
        sink.flush()
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, "internal")
        _give_up(sink, f"{error.strerror}{f': {error.filename}' if error.filename else ''}", kind)
    except Exception as error:
        # No traceback: printing one opens source files, by paths that are now the container's.
        _give_up(sink, f"{type(error).__name__}: {error}")


def _give_up(sink: IO[bytes], message: str, kind: str = "internal") -> None:
    sink.write(json.dumps({"error": kind, "message": message}).encode() + b"\n")
    sink.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
