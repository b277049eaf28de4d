"""Checkpoints of containers in the content store, as containerd's clients put them into images and take them out again.

Rule: criu's files travel as one plain tar, the container's spec beside it; what is unpacked for a restore lies in the
task's bundle and goes with it. Source: containerd ``core/images/mediatypes.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable

from containerd_py.diff.pool import Changes, LayerWorkers
from containerd_py.interfaces import ContainerStore, ContentStore, Mount, Scope
from containerd_py.services.diff import write_layer
from oci import errors
from oci.image import MEDIA_LAYER
from protos.containerd import runc_options_pb2, tasks_pb2, types_pb2

MEDIA_FILES = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
MEDIA_SPEC = "application/vnd.containerd.container.checkpoint.config.v1+proto"

Restore = Callable[[str], Awaitable[str]]
"""Have the files of a checkpoint: given a directory to make if one is needed, returns the one that has them."""


class Checkpoints:
    """Writes and reads checkpoints. ``directory`` is a private place for files on their way."""

    def __init__(
        self, content: ContentStore, workers: LayerWorkers, containers: ContainerStore, directory: str
    ) -> None:
        self._content = content
        self._workers = workers
        self._containers = containers
        self._directory = directory

    async def store(
        self, where: Scope, id: str, dump: Callable[[str], Awaitable[object]]
    ) -> list[types_pb2.Descriptor]:
        """What ``dump`` writes into the directory it is given, and the container's spec, as two blobs."""
        spec = self._containers.get(where, id).spec.SerializeToString()
        os.makedirs(self._directory, 0o700, exist_ok=True)
        # A directory below one of our own: runtimes leave their logs beside the images.
        work = await asyncio.to_thread(tempfile.mkdtemp, prefix="checkpoint-", dir=self._directory)
        images = f"{work}/images"
        os.mkdir(images, 0o700)
        try:
            await dump(images)
            mount = Mount("bind", images, options=("ro", "rbind"))
            files = await write_layer(self._content, self._workers, where, Changes([], [mount]), media_type=MEDIA_LAYER)
            config = await asyncio.to_thread(self._put, where, spec)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        return [
            types_pb2.Descriptor(media_type=MEDIA_FILES, digest=files.digest, size=files.size),
            types_pb2.Descriptor(media_type=MEDIA_SPEC, digest=config, size=len(spec)),
        ]

    def _put(self, where: Scope, data: bytes) -> str:
        with self._content.writer(where, f"checkpoint-{uuid.uuid4().hex}") as writer:
            writer.write(data)
            digest = writer.digest()
            with contextlib.suppress(errors.AlreadyExists):
                writer.commit()
            return digest

    def wanted(self, where: Scope, request: tasks_pb2.CreateTaskRequest) -> Restore | None:
        """How ``request`` wants to be restored; None for a task that begins anew. Raises ``InvalidArgument``."""
        options = runc_options_pb2.Options()
        if request.options.type_url.rpartition("/")[2] == options.DESCRIPTOR.full_name:
            options.ParseFromString(request.options.value)
        path = options.criu_image_path or request.checkpoint.annotations.get("RestoreFromPath", "")
        if path:
            return lambda _directory: _given(path)
        if not request.HasField("checkpoint"):
            return None
        if request.checkpoint.media_type != MEDIA_FILES:
            raise errors.InvalidArgument(f"a checkpoint is {MEDIA_FILES}, not {request.checkpoint.media_type!r}")
        return lambda directory: self._unpacked(where, request.checkpoint.digest, directory)

    async def _unpacked(self, where: Scope, digest: str, directory: str) -> str:
        os.makedirs(directory, 0o700, exist_ok=True)
        with self._content.open(where, digest) as blob:
            await self._workers.apply([Mount("bind", directory, options=("rw", "rbind"))], blob.fd)
        return directory


async def _given(path: str) -> str:
    if not os.path.isabs(path):
        raise errors.InvalidArgument(f"checkpoint {path!r} is no absolute path")
    return path
