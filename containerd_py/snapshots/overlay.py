"""The overlay snapshotter: ``snapshots/N/fs`` holds what changed, the kernel's overlayfs stacks them.

Rule: mounts are containerd's own, option for option, so that its clients and shims take them. Sources: Linux
``filesystems/overlayfs.rst``, containerd ``docs/snapshotters``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Sequence

from containerd_py.diff import mounting
from containerd_py.interfaces import Mount
from containerd_py.metadata.database import Database
from containerd_py.snapshots.base import ACTIVE, VIEW, DirectorySnapshotter, Publish
from oci.errors import FailedPrecondition, GantryError

_INDEX = "/sys/module/overlay/parameters/index"


class OverlaySnapshotter(DirectorySnapshotter):
    """Layers stacked by the kernel. ``prepare`` costs a few directories, whatever the size of the image."""

    name = "overlayfs"
    rebases = True

    def __init__(self, root: str, database: Database, publish: Publish) -> None:
        """Raises ``FailedPrecondition`` when overlay does not work on ``root``'s file system."""
        os.makedirs(root, mode=0o700, exist_ok=True)
        self.user_xattr = probe(root)
        self._options = (
            *(("index=off",) if os.path.exists(_INDEX) else ()),
            *(("userxattr",) if self.user_xattr else ()),
        )
        super().__init__(root, database, publish)

    def data(self, id: int) -> str:
        return f"{self.directory}/{id}/fs"

    def _make(self, path: str, source: str, parents: Sequence[int], kind: int) -> None:
        os.mkdir(path, 0o700)
        os.mkdir(f"{path}/fs", 0o755)
        if kind == ACTIVE:
            os.mkdir(f"{path}/work", 0o711)
        # The merged root shows the attributes of the uppermost directory.
        info = os.stat(self.data(parents[0])) if parents else None
        os.chmod(f"{path}/fs", info.st_mode & 0o7777 if info else 0o755)
        if info and (info.st_uid or info.st_gid):
            os.chown(f"{path}/fs", info.st_uid, info.st_gid)

    def _mounts(self, id: int, parents: Sequence[int], kind: int) -> list[Mount]:
        if not parents:
            return [Mount("bind", self.data(id), options=("ro" if kind == VIEW else "rw", "rbind"))]
        if kind == VIEW and len(parents) == 1:
            return [Mount("bind", self.data(parents[0]), options=("ro", "rbind"))]
        upper = (f"workdir={self.directory}/{id}/work", f"upperdir={self.data(id)}") if kind == ACTIVE else ()
        lower = "lowerdir=" + ":".join(self.data(parent) for parent in parents)
        return [Mount("overlay", "overlay", options=(*self._options, *upper, lower))]

    def adopt_root(self, id: int, parent: int) -> None:
        """Give the root of ``id``, prepared on nothing, the owner and mode of its parent to be."""
        info = os.stat(self.data(parent))
        os.chown(self.data(id), info.st_uid, info.st_gid)
        os.chmod(self.data(id), info.st_mode & 0o7777)

    def merges(self, parent: int, directory: str) -> bool:
        """Whether ``directory`` (from the root, "" for itself) is surely a directory of the stack under ``parent``."""
        for id in self.chain(parent):
            found = self._lookup(self.data(id), directory)
            if found is not None:
                return found
        return False

    @staticmethod
    def _lookup(layer: str, directory: str) -> bool | None:
        """True where one layer has it, False where it hides what is below, None where it does not say."""
        path, hides = layer, False
        for part in directory.split("/")[1:]:
            path = f"{path}/{part}"
            try:
                info = os.lstat(path)
            except FileNotFoundError:
                return False if hides else None
            if not stat.S_ISDIR(info.st_mode):
                return False
            hides = hides or _opaque(path)
        return True


def _opaque(directory: str) -> bool:
    names = os.listxattr(directory, follow_symlinks=False)
    return "trusted.overlay.opaque" in names or "user.overlay.opaque" in names


def probe(root: str) -> bool:
    """Whether overlay on ``root`` needs ``userxattr``; raises ``FailedPrecondition`` when it does not work at all.

    Runs in a thread with a mount namespace of its own, so the daemon's is never touched.
    """
    if ":" in root or "," in root:
        raise FailedPrecondition(f"overlay cannot be used on {root!r}: its options have no way to quote ':' and ','")
    result: list[bool | Exception] = []

    def run() -> None:
        try:
            mounting.private_namespace()
            result.append(_probe(root))
        except (OSError, GantryError) as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], Exception):
        raise FailedPrecondition(f"overlay does not work on {root}: {result[0]}") from result[0]
    return result[0]


def _probe(root: str) -> bool:
    place = f"{root}/probe-{os.urandom(4).hex()}"
    os.mkdir(place, 0o700)
    try:
        first: Exception | None = None
        for user in (False, True):
            try:
                _try(f"{place}/{int(user)}", user)
            except (OSError, GantryError) as error:
                first = first or error
            else:
                return user
        assert first is not None
        raise first
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _try(place: str, user: bool) -> None:
    """Mount, and replace a directory of the lower layer: that takes a whiteout and an opaque mark."""
    for name in ("lower/d", "upper", "work", "merged"):
        os.makedirs(f"{place}/{name}")
    options = [f"lowerdir={place}/lower", f"upperdir={place}/upper", f"workdir={place}/work"]
    mounting.mount_all([["overlay", "overlay", "", [*options, *(["userxattr"] if user else [])]]], f"{place}/merged")
    try:
        os.rmdir(f"{place}/merged/d")
        os.mkdir(f"{place}/merged/d")
        attribute = "user.overlay.opaque" if user else "trusted.overlay.opaque"
        if os.getxattr(f"{place}/upper/d", attribute) != b"y":
            raise FailedPrecondition("opaque directories are not marked")
    finally:
        with contextlib.suppress(GantryError):
            mounting.unmount(f"{place}/merged")
