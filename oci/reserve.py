"""A little disk space held back, so that a full disk stops new work and not the bookkeeping of what ends.

Rule: the space is a file that is given up when almost nothing is left, and taken again when there is plenty; a daemon
that cannot write down that a container ended could not even free the space that the container took.
"""

from __future__ import annotations

import contextlib
import os

SIZE = 4 << 20
"""Bytes held back."""

LOW = 1 << 20
"""Fewer free bytes than this, and the reserve is given up."""

PLENTY = 4 * SIZE
"""More free bytes than this, and it is taken again."""


class Reserve:
    """The reserve of one file system. ``guard`` costs one system call while all is well."""

    def __init__(self, path: str) -> None:
        """``path``: the file to hold; it is made by the first ``guard`` that finds room."""
        self._path = path
        self._directory = os.path.dirname(path) or "."
        self._held = os.path.exists(path)

    def guard(self) -> None:
        """Call before writing what must not fail. Never raises."""
        with contextlib.suppress(OSError):
            status = os.statvfs(self._directory)
            free = status.f_bavail * status.f_frsize
            if self._held and free < LOW:
                self._held = False
                os.unlink(self._path)
            elif not self._held and free > PLENTY:
                self._take()

    def _take(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)
            self._held = True
        except OSError:
            os.unlink(self._path)
            raise
        finally:
            os.close(fd)
