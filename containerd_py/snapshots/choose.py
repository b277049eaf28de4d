"""Which snapshotters this host has, and which one is the default.

Rule: never degrade silently. Where overlay does not work, the log says so once, with the reason and what it costs.
"""

from __future__ import annotations

import os

from containerd_py.metadata.database import Database
from containerd_py.snapshots.base import DirectorySnapshotter, Publish, log
from containerd_py.snapshots.native import NativeSnapshotter
from containerd_py.snapshots.overlay import OverlaySnapshotter
from oci.errors import FailedPrecondition

_DIRECTORY = "io.containerd.snapshotter.v1."


def snapshotters(root: str, database: Database, publish: Publish) -> dict[str, DirectorySnapshotter]:
    """Snapshotters by name, the default first. ``root`` is the daemon's data root, ``publish`` the exchange's."""
    found: dict[str, DirectorySnapshotter] = {}
    try:
        found["overlayfs"] = OverlaySnapshotter(os.path.join(root, _DIRECTORY + "overlayfs"), database, publish)
    except FailedPrecondition as error:
        log.warning(
            "overlay is not usable, snapshots are copied instead: slower, and each takes the image's size",
            reason=str(error),
            fix="put the data root on ext4, xfs or btrfs",
        )
    found["native"] = NativeSnapshotter(os.path.join(root, _DIRECTORY + "native"), database, publish)
    return found
