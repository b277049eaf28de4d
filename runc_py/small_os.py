"""What the runtime uses of ``os``, for a process that has not imported it: ``os`` brings two dozen abstract classes.

Rule: the same functions (``posix`` has most of them), the same answers. A name that is not here is ``os``'s own, which
is imported then. ``runc_py.light`` chooses: where ``os`` is there already, it is used.
"""

from __future__ import annotations

import posix
import sys
from posix import *  # noqa: F403 -- that is what os does

from runc_py import small_path as path

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

__all__ = ["_exit", "environ", "fsdecode", "fsencode", "makedirs", "path"]

_exit = posix._exit
SEEK_SET = 0


def fsencode(name: str | bytes) -> bytes:
    """``os.fsencode`` of text or bytes."""
    if isinstance(name, bytes):
        return name
    return name.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def fsdecode(name: str | bytes) -> str:
    """``os.fsdecode`` of text or bytes."""
    if isinstance(name, str):
        return name
    return name.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


environ = {fsdecode(name): fsdecode(value) for name, value in posix.environ.items()}  # type: ignore[misc]  # the stub has text here
"""A plain dictionary: what is changed in it reaches those that are given it, and not C's ``getenv``."""


def makedirs(name: str, mode: int = 0o777, exist_ok: bool = False) -> None:
    """``os.makedirs``."""
    parent = path.dirname(name.rstrip("/"))
    if parent and parent != name and not path.exists(parent):
        makedirs(parent, exist_ok=True)
    try:
        posix.mkdir(name, mode)
    except OSError:
        if not exist_ok or not path.isdir(name):
            raise


def __getattr__(name: str) -> Any:
    import os

    return getattr(os, name)
