"""From a manifest to the unpacker's request: layers with their diff IDs.

Rule: layers whose blobs still arrive are handed over with what to wait for, so that unpacking keeps pace with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping

from containerd_py.interfaces import Scope
from containerd_py.transfer import graph
from containerd_py.transfer.model import Event, Report, Stores, Unpack
from containerd_py.unpack import Layer
from oci.errors import DataLoss, FailedPrecondition
from oci.image import Descriptor, ImageConfig, Manifest


async def unpack_image(
    stores: Stores,
    scope: Scope,
    manifest: Manifest,
    unpack: Unpack,
    report: Report,
    arriving: Mapping[str, asyncio.Task[None]] = {},
) -> None:
    """Have the snapshot of ``manifest``, whose config is here. Artifacts without layers of a file system are left."""
    if stores.unpacker is None:
        raise FailedPrecondition("this daemon was started without an unpacker")
    layers = [layer for layer in manifest.layers if graph.is_layer(layer)]
    if not layers:
        return
    config = graph.read(stores.content, scope, manifest.config, ImageConfig)
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(layers):
        count = f"its manifest has {len(layers)} layers, its config {len(diff_ids)} diff IDs"
        raise DataLoss(f"image {manifest.config.digest}: {count}")

    def tell(blob: Descriptor, state: str, done: int) -> None:
        report(Event(state, blob.digest, done, blob.size, blob))

    work = [Layer(blob, diff, _ready(arriving.get(blob.digest))) for blob, diff in zip(layers, diff_ids, strict=True)]
    await stores.unpacker.unpack(scope, manifest.config.digest, work, unpack.snapshotter, tell)


class _Arrived:
    """Waits for a download; who stops waiting does not stop the download for others."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def __await__(self) -> Generator[object, None, None]:
        return asyncio.shield(self._task).__await__()


def _ready(task: asyncio.Task[None] | None) -> _Arrived | None:
    return None if task is None else _Arrived(task)
