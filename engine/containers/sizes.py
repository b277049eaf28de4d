"""How much a container has written, and how large its whole root file system is.

Rule: sizes are asked of the snapshotter, one snapshot at a time, and what a chain shares is asked only once.
"""

from __future__ import annotations

from engine.backend import Backend, translated
from engine.containers.model import Container
from oci.errors import NotFound
from protos.containerd import snapshots_pb2


class Sizes:
    """Sizes of snapshots; those of committed ones are remembered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[tuple[str, str], tuple[int, str]] = {}

    async def of(self, doc: Container) -> tuple[int, int]:
        """(``SizeRw``, ``SizeRootFs``) in bytes."""
        written = await self.written(doc)
        total, name = written, doc.chain_id
        while name:
            size, name = await self._committed(doc.snapshotter, name)
            total += size
        return written, total

    async def written(self, doc: Container) -> int:
        """Bytes in the container's own layer."""
        try:
            with translated():
                request = snapshots_pb2.UsageRequest(snapshotter=doc.snapshotter, key=doc.id)
                return int((await self._backend.snapshots.Usage(request)).size)
        except NotFound:
            return 0

    async def _committed(self, snapshotter: str, name: str) -> tuple[int, str]:
        known = self._known.get((snapshotter, name))
        if known is None:
            with translated():
                usage = await self._backend.snapshots.Usage(
                    snapshots_pb2.UsageRequest(snapshotter=snapshotter, key=name)
                )
                stat = await self._backend.snapshots.Stat(
                    snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=name)
                )
            known = self._known[snapshotter, name] = int(usage.size), stat.info.parent
        return known
