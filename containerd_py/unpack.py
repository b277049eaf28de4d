"""Images become snapshots: each layer is applied once, whoever asks, and verified before it is committed.

Rule: a chain ID is worked on by one caller at a time; the others wait and find it done, or take over when it failed.
A layer starts as soon as its blob is there. Where its parent is not ready yet and the snapshotter stacks directories,
it is unpacked on its own (``diff.upper``) and put upon its parent at commit; layers that need those below go in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import structlog

from containerd_py.diff import media
from containerd_py.diff.pool import Applied, LayerWorkers, Separated
from containerd_py.interfaces import GC_REF_SNAPSHOT, ContentStore, Scope, Usage
from containerd_py.metadata.database import Database
from containerd_py.snapshots.base import DirectorySnapshotter
from containerd_py.snapshots.overlay import OverlaySnapshotter
from oci import digest
from oci.errors import Aborted, AlreadyExists, DataLoss, GantryError, InvalidArgument
from oci.image import Descriptor

T = TypeVar("T")
_log = structlog.get_logger("containerd_py.unpack")


class Layer(NamedTuple):
    """A layer to unpack. ``ready`` ends when the blob is in the content store, and fails when it will not come."""

    blob: Descriptor
    diff_id: str
    ready: Awaitable[object] | None = None


Progress = Callable[[Descriptor, str, int], None]
"""Told of (layer blob, ``extracting`` | ``extracted`` | ``exists``, compressed bytes read so far)."""


def _silent(_blob: Descriptor, _state: str, _done: int) -> None:
    return


class Unpacker:
    """Unpacks images into the snapshotters of one daemon. Use on one event loop."""

    def __init__(
        self,
        content: ContentStore,
        snapshotters: Mapping[str, DirectorySnapshotter],
        workers: LayerWorkers,
        database: Database,
    ) -> None:
        self._content = content
        self._snapshotters = snapshotters
        self._workers = workers
        self._database = database
        self._locks: dict[tuple[str, str, str], _Turn] = {}
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def default(self) -> str:
        """Name of the snapshotter that is used where none is asked for."""
        return next(iter(self._snapshotters))

    async def unpack(
        self, scope: Scope, config: str, layers: Sequence[Layer], snapshotter: str = "", progress: Progress = _silent
    ) -> str:
        """Have a committed snapshot of all ``layers`` (base first); returns its chain ID ("" without layers).

        ``config``: digest of the config blob, which gets the label that keeps the snapshot ("" for none). ``scope``'s
        lease holds every snapshot from its beginning on. Layers go to disk in the background: those that a power cut
        takes before are forgotten at the next start (never used damaged), and unpacked again. Raises ``DataLoss`` (a
        layer is not what ``diff_id`` says, or is corrupt), ``InvalidArgument``, ``ResourceExhausted``, and what
        ``ready`` raises.
        """
        name = snapshotter or self.default
        target = self._snapshotters.get(name)
        if target is None:
            raise InvalidArgument(f"snapshotter not loaded: {name}", hint=f"there are: {', '.join(self._snapshotters)}")
        chain = digest.chain_ids(layer.diff_id for layer in layers)
        await self._all(_Unpacking(self, scope, target, layers, chain, progress))
        if chain:
            self._settle(target, scope, chain)
        if config and chain:
            label = GC_REF_SNAPSHOT + name
            self._content.update(scope, config, {label: chain[-1]}, [f"labels.{label}"])
        await self._database.flushed()
        return chain[-1] if chain else ""

    def _settle(self, target: DirectorySnapshotter, scope: Scope, chain: Sequence[str]) -> None:
        settling = asyncio.create_task(asyncio.to_thread(target.settle, scope, chain))
        self._settling.add(settling)
        settling.add_done_callback(self._settled)

    def _settled(self, settling: asyncio.Task[None]) -> None:
        self._settling.discard(settling)
        if not settling.cancelled() and (error := settling.exception()) is not None:
            _log.warning("layers may not be on disk yet; the next start sees to it", reason=str(error))

    async def _all(self, unpacking: _Unpacking) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(unpacking.layers)):
                    unpacking.tasks.append(group.create_task(unpacking.layer(number)))
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    @contextlib.asynccontextmanager
    async def turn(self, key: tuple[str, str, str]) -> AsyncIterator[None]:
        """Be the only one that works on ``key``."""
        turn = self._locks.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._locks[key]

    async def ordered(self, scope: Scope, target: DirectorySnapshotter, key: str, layer: Layer, told: Told) -> Applied:
        """Apply ``layer`` to the mounts of ``key``."""
        with self._content.open(scope, layer.blob.digest) as blob:
            return await self._workers.apply(target.mounts(scope, key), blob.fd, progress=told)

    async def alone(self, scope: Scope, target: OverlaySnapshotter, id: int, layer: Layer, told: Told) -> Separated:
        """Unpack ``layer`` into the directory of ``id``. Raises ``Aborted`` when it needs those below."""
        with self._content.open(scope, layer.blob.digest) as blob:
            return await self._workers.apply_alone(
                target.data(id), blob.fd, user_xattr=target.user_xattr, progress=told
            )

    def label(self, scope: Scope, layer: Layer) -> None:
        """Note on the blob what its plain tar is."""
        labels = {media.UNCOMPRESSED: layer.diff_id}
        self._content.update(scope, layer.blob.digest, labels, [f"labels.{media.UNCOMPRESSED}"])


Told = Callable[[int], None]


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class _Unpacking:
    """One image on its way."""

    def __init__(
        self,
        owner: Unpacker,
        scope: Scope,
        target: DirectorySnapshotter,
        layers: Sequence[Layer],
        chain: Sequence[str],
        progress: Progress,
    ) -> None:
        self.layers = layers
        self.tasks: list[asyncio.Task[None]] = []
        self._owner = owner
        self._scope = scope
        self._target = target
        self._chain = chain
        self._progress = progress

    async def layer(self, number: int) -> None:
        """Have the snapshot of chain ID ``number`` committed."""
        chain = self._chain[number]
        layer = self.layers[number]
        if layer.ready is not None and not self._target.hold(self._scope, chain):
            await layer.ready
        async with self._owner.turn((self._scope.namespace, self._target.name, chain)):
            if self._target.hold(self._scope, chain):
                self._progress(layer.blob, "exists", 0)
                return
            media.check_layer(layer.blob.media_type)
            self._progress(layer.blob, "extracting", 0)
            if not await self._apart(number):
                await self._in_order(number)
            self._owner.label(self._scope, layer)
            self._progress(layer.blob, "extracted", layer.blob.size)

    async def _below(self, number: int) -> str:
        """Wait for the parent; its chain ID."""
        if not number:
            return ""
        await asyncio.shield(self.tasks[number - 1])
        return self._chain[number - 1]

    def _told(self, layer: Layer) -> Told:
        return lambda done: self._progress(layer.blob, "extracting", done)

    async def _in_order(self, number: int) -> None:
        parent = await self._below(number)
        layer = self.layers[number]
        async with self._prepared(number, parent) as key:
            found = await self._owner.ordered(self._scope, self._target, key, layer, self._told(layer))
            await self._commit(number, key, found.digest, usage=None if self._target.copies else found.usage)

    async def _apart(self, number: int) -> bool:
        """Unpack a layer before its parent is there; False when that is not possible or not needed."""
        target = self._target
        if not number or self.tasks[number - 1].done() or not isinstance(target, OverlaySnapshotter):
            return False
        layer = self.layers[number]
        async with self._prepared(number, "") as key:
            id = target.id_of(self._scope, key)
            try:
                found = await self._owner.alone(self._scope, target, id, layer, self._told(layer))
            except Aborted as error:
                _log.debug("layer is applied in order", layer=layer.blob.digest, reason=error.message)
                return False
            parent = await self._below(number)
            below = target.id_of(self._scope, parent)
            if not all(target.merges(below, directory) for directory in found.removed_in):
                return False
            if not found.root:
                target.adopt_root(id, below)
            await self._commit(number, key, found.digest, parent, found.usage)
        return True

    @contextlib.asynccontextmanager
    async def _prepared(self, number: int, parent: str) -> AsyncIterator[str]:
        """An active snapshot for layer ``number``, removed again unless it was committed."""
        key = f"extract-{uuid.uuid4().hex[:12]} {self._chain[number]}"
        if self._target.copies:
            await asyncio.to_thread(self._target.prepare, self._scope, key, parent)
        else:
            self._target.prepare(self._scope, key, parent)
        try:
            yield key
        finally:
            with contextlib.suppress(GantryError):
                self._target.remove(self._scope, key)  # not found: it was committed

    async def _commit(self, number: int, key: str, found: str, parent: str = "", usage: Usage | None = None) -> None:
        layer = self.layers[number]
        if found != layer.diff_id:
            raise DataLoss(f"layer {layer.blob.digest} unpacks to {found}, but the image's config says {layer.diff_id}")
        with contextlib.suppress(AlreadyExists):  # a client unpacked it by itself meanwhile
            await _unbroken(
                asyncio.to_thread(
                    self._target.commit,
                    self._scope,
                    self._chain[number],
                    key,
                    parent=parent,
                    sync=False,  # once for all layers, at the end
                    usage=usage,
                )
            )
        self._target.hold(self._scope, self._chain[number])


async def _unbroken(work: Awaitable[T]) -> T:
    """``work`` to its end even when we are cancelled: a thread cannot be stopped, and must not act behind our back."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell: the first real one, since the others were cancelled because of it."""
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
