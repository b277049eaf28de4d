"""What the runtime uses of ``os.path``, for ``runc_py.small_os``.

Rule: the same answers as ``posixpath`` for text; what is not here, or not simple, is asked of ``posixpath`` itself.
"""

from __future__ import annotations

import _stat as modes
import posix

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any


def join(first: str, *more: str) -> str:
    """``os.path.join``."""
    path = first
    for part in more:
        if part.startswith("/"):
            path = part
        elif not path or path.endswith("/"):
            path += part
        else:
            path = f"{path}/{part}"
    return path


def split(path: str) -> tuple[str, str]:
    """``os.path.split``."""
    place = path.rfind("/") + 1
    head, tail = path[:place], path[place:]
    return head.rstrip("/") or head, tail


def dirname(path: str) -> str:
    """``os.path.dirname``."""
    return split(path)[0]


def basename(path: str) -> str:
    """``os.path.basename``."""
    return path[path.rfind("/") + 1 :]


def normpath(path: str) -> str:
    """``os.path.normpath``."""
    if not path:
        return "."
    kept: list[str] = []
    root = "/" * (len(path) - len(path.lstrip("/")))
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != ".." or (not root and not kept) or (kept and kept[-1] == ".."):
            kept.append(part)
        elif kept:
            kept.pop()
    return ("//" if len(root) == 2 else root[:1]) + "/".join(kept) or "."


def abspath(path: str) -> str:
    """``os.path.abspath``."""
    return normpath(path if path.startswith("/") else f"{posix.getcwd()}/{path}")


def exists(path: str) -> bool:
    """``os.path.exists``."""
    return _mode(path) is not None


def isdir(path: str) -> bool:
    """``os.path.isdir``."""
    mode = _mode(path)
    return mode is not None and modes.S_ISDIR(mode)


def islink(path: str) -> bool:
    """``os.path.islink``."""
    try:
        return modes.S_ISLNK(posix.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def realpath(path: str) -> str:
    """``os.path.realpath``: the kernel's answer, which is the same where the file is there."""
    try:
        fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
        try:
            found = posix.readlink(f"/proc/self/fd/{fd}")
            if posix.stat(found)[1:3] == posix.fstat(fd)[1:3]:  # else deleted meanwhile, or hidden by a mount
                return found
        finally:
            posix.close(fd)
    except (OSError, ValueError):
        pass
    import posixpath

    return posixpath.realpath(path)


def _mode(path: str) -> int | None:
    try:
        return posix.stat(path).st_mode
    except (OSError, ValueError):
        return None


def __getattr__(name: str) -> Any:
    import posixpath

    return getattr(posixpath, name)
