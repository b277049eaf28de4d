"""Applies a layer straight into an overlay's upper directory, without the layers below it at hand.

Rule: the result must be what applying to the mounted stack gives, so whatever would depend on the layers below (a
directory the archive never mentions, a hard link to an older file) ends it with ``Aborted``; the caller then applies in
order. Whiteouts become 0/0 devices, opaque markers and replaced directories ``overlay.opaque`` (Linux
``filesystems/overlayfs.rst``).
"""

from __future__ import annotations

import os
import stat

from containerd_py.diff.apply import Applier, clean
from oci import tar
from oci.errors import Aborted


class UpperApplier(Applier):
    """An ``Applier`` whose root is one layer alone."""

    def __init__(self, *, user_xattr: bool = False, chown: bool = True) -> None:
        super().__init__(chown=chown)
        self._opaque_mark = "user.overlay.opaque" if user_xattr else "trusted.overlay.opaque"
        self._opaque: set[str] = set()
        self.removed: set[str] = set()
        """Whiteouts: overlay shows them as devices unless their directory is merged with one below."""

    @property
    def has_root(self) -> bool:
        """Whether the archive set the attributes of the root directory."""
        return "/" in self._times

    def _make_parent(self, path: str) -> None:
        if path not in self._directories:
            raise Aborted(f"layer does not describe directory {path!r} itself")

    def _remove(self, path: str) -> None:
        self.removed.discard(path)
        super()._remove(path)

    def _forget(self, path: str) -> None:
        super()._forget(path)
        below = path + "/"
        self._opaque = {d for d in self._opaque if d != path and not d.startswith(below)}
        self.removed = {d for d in self.removed if not d.startswith(below)}

    def _in_opaque(self, path: str) -> bool:
        while path:
            if path in self._opaque:
                return True
            path = path.rpartition("/")[0]
        return False

    def _white_out_path(self, path: str) -> None:
        self._remove(path)
        if not self._in_opaque(path):
            os.mknod(path, stat.S_IFCHR, 0)
            self.removed.add(path)

    def _make_opaque(self, directory: str) -> None:
        if directory == "/":
            raise Aborted("layer hides everything below its root")
        prefix = directory + "/"
        if any(path.startswith(prefix) for path in self.removed):
            raise Aborted(f"layer removes files before it hides directory {directory!r}")
        os.setxattr(directory, self._opaque_mark, b"y")
        self._opaque.add(directory)

    def _directory(self, entry: tar.Entry, path: str) -> None:
        # What this layer already put (or removed) here hid the older directory for good.
        hides = path != "/" and os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode)
        super()._directory(entry, path)
        if hides:
            os.setxattr(path, self._opaque_mark, b"y")
            self._opaque.add(path)

    def _hardlink(self, entry: tar.Entry, path: str) -> None:
        target = clean(entry.link)
        parent = target.rpartition("/")[0] or "/"
        if parent not in self._directories or target in self.removed or not os.path.lexists(target):
            raise Aborted(f"layer links {entry.name!r} to {entry.link!r} of a layer below")
        super()._hardlink(entry, path)

    def _node(self, entry: tar.Entry, path: str) -> None:
        if entry.kind == tar.CHAR and not entry.major and not entry.minor:
            raise Aborted(f"layer holds the device {entry.name!r}, which overlay takes for a whiteout")
        super()._node(entry, path)
