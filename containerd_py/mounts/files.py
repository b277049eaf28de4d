"""The transforms that make things: directories (``mkdir``) and file systems in files (``mkfs``).

Rule: only below the daemon's own directories and what it has mounted, and never through a symbolic link: what lies
there may be an image's or a container's. Every directory on the way is opened by the one above it.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence

from oci import errors
from protos.containerd.types_pb2 import Mount

MKDIR, MKFS = "X-containerd.mkdir.", "X-containerd.mkfs."
FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs")
MKFS_SECONDS = 120.0

_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def make_directories(mount: Mount, roots: Sequence[str]) -> None:
    """``X-containerd.mkdir.path=DIR[:MODE[:UID:GID]]``, as often as it is given. Raises ``InvalidArgument``."""
    for option in _taken(mount, MKDIR):
        name, _, value = option.partition("=")
        words = value.split(":")
        if name != "path" or len(words) not in (1, 2, 4):
            raise errors.InvalidArgument(f"mount option {MKDIR}{option}: expected path=DIR[:MODE[:UID:GID]]")
        try:
            mode = int(words[1], 8) if len(words) > 1 else 0o700
            owner = (int(words[2]), int(words[3])) if len(words) == 4 else None
        except ValueError:
            raise errors.InvalidArgument(f"mount option {MKDIR}{option}: mode and owner must be numbers") from None
        if mode & ~0o777:
            raise errors.InvalidArgument(f"mount option {MKDIR}{option}: mode {mode:o} has more than permissions")
        with _opened(words[0], roots, mode) as directory:
            os.fchmod(directory, mode)
            if owner is not None:
                os.fchown(directory, *owner)


def make_file_system(mount: Mount, roots: Sequence[str]) -> None:
    """A file with a file system in it at the mount's source, unless there is one. Raises ``InvalidArgument``."""
    options = dict(option.partition("=")[::2] for option in _taken(mount, MKFS))
    unknown = set(options) - {"size", "fs", "uuid"}
    kind = options.get("fs", "ext4")
    if unknown or kind not in FILE_SYSTEMS:
        raise errors.InvalidArgument(
            f"mkfs of {mount.source}: unknown {', '.join(sorted(unknown)) or kind!r}",
            hint=f"size, uuid, and fs of {', '.join(FILE_SYSTEMS)}",
        )
    size = _bytes(options.get("size", ""), mount.source)
    folder, _, name = mount.source.rpartition("/")
    with _opened(folder, roots, 0o700) as directory:
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=directory, follow_symlinks=False)
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(name, flags, 0o640, dir_fd=directory)
        try:
            os.truncate(file, size)
            _format(kind, options.get("uuid", ""), file, mount.source)
        except BaseException:
            os.unlink(name, dir_fd=directory)
            raise
        finally:
            os.close(file)


def _format(kind: str, uuid: str, file: int, source: str) -> None:
    identity = ([] if not uuid else ["-m", f"uuid={uuid}"]) if kind == "xfs" else ([] if not uuid else ["-U", uuid])
    command = [f"mkfs.{kind}", "-q", *identity, f"/proc/self/fd/{file}"]
    try:
        done = subprocess.run(command, capture_output=True, pass_fds=[file], timeout=MKFS_SECONDS, check=False)
    except FileNotFoundError:
        raise errors.FailedPrecondition(f"mkfs of {source}: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise errors.DeadlineExceeded(f"mkfs of {source}: {command[0]} took longer than {MKFS_SECONDS:g} s") from None
    if done.returncode:
        raise errors.InvalidArgument(f"mkfs of {source}: {done.stderr.decode(errors='replace').strip()}")


def _bytes(text: str, source: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None or not int(found[1]):
        raise errors.InvalidArgument(f"mkfs of {source}: size {text!r} is none", hint="such as 100MiB")
    return int(found[1]) << _UNITS[found[2].lower()]


def _taken(mount: Mount, prefix: str) -> list[str]:
    """The options that begin with ``prefix``, which they lose; they leave the mount."""
    found = [option.removeprefix(prefix) for option in mount.options if option.startswith(prefix)]
    mount.options[:] = [option for option in mount.options if not option.startswith(prefix)]
    return found


@contextlib.contextmanager
def _opened(path: str, roots: Sequence[str], mode: int) -> Iterator[int]:
    """The directory ``path``, made where it is missing. Raises ``PermissionDenied`` outside of ``roots``."""
    root = next((root for root in roots if path == root or path.startswith(f"{root}/")), "")
    parts = [part for part in path.removeprefix(root).split("/") if part and part != "."]
    if not root or ".." in parts:
        raise errors.PermissionDenied(f"{path} is not below a directory of the daemon's", hint=", ".join(roots))
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    current = os.open(root, flags)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, mode, dir_fd=current)
            below = os.open(part, flags, dir_fd=current)
            os.close(current)
            current = below
        yield current
    except OSError as error:
        raise errors.InvalidArgument(f"{path}: {error}") from error
    finally:
        os.close(current)
