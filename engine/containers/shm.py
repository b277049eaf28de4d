"""``/dev/shm`` of containers whose IPC others may join (``--ipc shareable``): a tmpfs on the host, one for each.

Rule: the mount's name is the container's id, so that a sweep at start knows whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from engine.containers.volume_mounts import mount_volume, unmount_volume


class SharedMemory:
    """The mounts below ``root``."""

    def __init__(self, root: str) -> None:
        self._root = root

    def path(self, container_id: str) -> str:
        """Where a container's shared memory is mounted."""
        return f"{self._root}/{container_id}"

    async def open(self, container_id: str, size: int) -> str:
        """Mount ``size`` bytes of shared memory; the path. Idempotent."""
        path = self.path(container_id)
        os.makedirs(path, exist_ok=True)
        options = {"type": "tmpfs", "device": "shm", "o": f"nosuid,nodev,noexec,mode=1777,size={size}"}
        await asyncio.to_thread(mount_volume, f"shm of {container_id}", options, path)
        return path

    async def close(self, container_id: str) -> None:
        """Unmount it. Idempotent."""
        path = self.path(container_id)
        if os.path.isdir(path):
            await asyncio.to_thread(unmount_volume, path)
            with contextlib.suppress(OSError):
                os.rmdir(path)

    async def sweep(self, alive: frozenset[str]) -> None:
        """At the daemon's start: keep those of ``alive`` containers only."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._root):
                if name not in alive:
                    await self.close(name)
