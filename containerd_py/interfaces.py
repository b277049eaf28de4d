"""What the rooms of containerd-py offer each other in-process: stores, snapshotters, the event exchange.

Rule: these protocols are the vocabulary; gRPC services are thin shells over them. Every name is containerd's own
(content, ingest, snapshot, lease, label). Times are integers, nanoseconds since the epoch. Errors are ``oci.errors``.

Threads: metadata calls take some ten microseconds and may be made on the event loop. Methods marked *blocking* touch
file data: call them with ``asyncio.to_thread``. All of them may be called from any thread. Stores publish the events
of their own changes, so callers never do.

A change outlives this process when the method returns. It survives a power cut when ``metadata.Database.flushed()`` was
awaited (or ``flush()`` returned) after it: whoever tells a client of it does that first. *Blocking* methods do it
themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec
from google.protobuf.message import Message

from oci.image import Descriptor
from protos.containerd import containers_pb2, types_pb2

GC_ROOT = "containerd.io/gc.root"
"""Label: keep this object whoever refers to it."""
GC_EXPIRE = "containerd.io/gc.expire"
"""Label of leases and content ingests: RFC 3339 time after which they no longer count."""
GC_FLAT = "containerd.io/gc.flat"
"""Label of leases: keep the resources themselves, not what they refer to."""
GC_REF_CONTENT = "containerd.io/gc.ref.content"
"""Label prefix: keep the blob of that digest; any suffix (``.config``, ``.l.0``, ``.m.1``) tells several apart."""
GC_REF_SNAPSHOT = "containerd.io/gc.ref.snapshot."
"""Label prefix, completed by the snapshotter's name: keep the snapshot of that key."""


class Scope(NamedTuple):
    """Whose objects a call is about: the namespace, and the lease that shall hold what it creates ("" for none)."""

    namespace: str
    lease: str = ""


class ContentInfo(msgspec.Struct, frozen=True):
    """A blob that is here whole. ``size`` in bytes."""

    digest: str
    size: int
    created_at: int
    updated_at: int
    labels: dict[str, str]


class IngestStatus(msgspec.Struct, frozen=True):
    """A blob that is arriving: ``offset`` bytes of ``total`` (0: unknown) are stored."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: int
    updated_at: int


class Image(msgspec.Struct, frozen=True):
    """A name for a descriptor."""

    name: str
    target: Descriptor
    labels: dict[str, str] = {}
    created_at: int = 0
    updated_at: int = 0


class Lease(msgspec.Struct, frozen=True):
    """A set of resources that garbage collection leaves alone until the lease is deleted or expires."""

    id: str
    created_at: int = 0
    labels: dict[str, str] = {}


class Resource(NamedTuple):
    """What a lease holds: ``type`` is ``content``, ``ingests`` or ``snapshots/<snapshotter>``."""

    id: str
    type: str


class Mount(NamedTuple):
    """A mount to be made by whoever needs it: ``mount -t type -o options source <root>/target``."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


class SnapshotInfo(msgspec.Struct, frozen=True):
    """``kind`` is ``snapshots_pb2.VIEW``, ``ACTIVE`` or ``COMMITTED``; ``parent`` is "" at the base."""

    name: str
    parent: str
    kind: int
    created_at: int
    updated_at: int
    labels: dict[str, str]


class Usage(NamedTuple):
    """Disk taken by one snapshot without its parents: bytes and inodes."""

    size: int
    inodes: int


class Blob(Protocol):
    """An open blob. Closing it is the caller's duty (it is a context manager)."""

    size: int
    fd: int
    """Read-only descriptor, for ``sendfile`` or for handing to a worker process."""

    def read(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; b"" at the end. Blocking."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ContentWriter(Protocol):
    """One ingest, held open by one writer at a time. Leaving it uncommitted keeps the bytes for resuming.

    A context manager: leaving closes the writer (not the ingest: see ``ContentStore.abort``).
    """

    ref: str
    offset: int
    """Bytes stored so far; the next ``write`` appends there."""

    def write(self, data: bytes) -> int:
        """Append and hash. Returns the new offset. Blocking."""

    def truncate(self, size: int) -> None:
        """Forget the bytes from ``size`` on. Blocking: what stays is hashed again."""

    def digest(self) -> str:
        """Digest of the bytes so far."""

    def status(self) -> IngestStatus: ...

    def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] = {}) -> str:
        """Make the bytes a blob, visible and on disk when this returns its digest. Blocking.

        A ``size`` of 0 and an empty ``expected`` are not checked. Raises ``FailedPrecondition`` when size or digest
        differ (the ingest stays, so that the caller may truncate or abort), ``AlreadyExists`` when the namespace has
        the blob (the ingest is gone then; callers treat it as success).
        """

    def close(self) -> None:
        """Release the ingest, keeping its bytes. Idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ContentStore(Protocol):
    """Blobs by digest. A blob is seen only when whole, and only by namespaces that committed it."""

    def info(self, scope: Scope, digest: str) -> ContentInfo:
        """Raises ``NotFound``."""

    def walk(self, scope: Scope, filters: Sequence[str] = ()) -> list[ContentInfo]:
        """Blobs that match one of ``filters`` (all when empty), ordered by digest."""

    def update(self, scope: Scope, digest: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> ContentInfo:
        """Set labels: all of them, or those of ``fields`` (``labels``, ``labels.<key>``; an empty value removes)."""

    def delete(self, scope: Scope, digest: str) -> None:
        """Forget the blob in this namespace; its bytes go when no namespace knows it."""

    def open(self, scope: Scope, digest: str) -> Blob:
        """Raises ``NotFound``."""

    def read(self, scope: Scope, digest: str) -> bytes:
        """The whole of a small blob (manifest, config). Blocking for a moment."""

    def writer(self, scope: Scope, ref: str, total: int = 0, expected: str = "") -> ContentWriter:
        """Start or resume the ingest ``ref``. Blocking when there are bytes to hash again.

        Raises ``AlreadyExists`` when the namespace has ``expected`` already (the lease of ``scope`` holds it then),
        ``Unavailable`` while another writer holds ``ref``. When only another namespace has ``expected``, the writer
        starts with ``offset`` at its size: commit at once, as nothing need be sent.
        """

    def status(self, scope: Scope, ref: str) -> IngestStatus:
        """Raises ``NotFound``."""

    def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> list[IngestStatus]: ...

    def abort(self, scope: Scope, ref: str) -> None:
        """Throw the ingest away. Raises ``NotFound``."""


class ImageStore(Protocol):
    """Names of images."""

    def get(self, scope: Scope, name: str) -> Image: ...

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Image]: ...

    def create(self, scope: Scope, image: Image) -> Image:
        """Raises ``AlreadyExists``."""

    def update(self, scope: Scope, image: Image, fields: Sequence[str] = ()) -> Image:
        """``fields`` of ``target``, ``annotations``, ``labels`` and keys of the two; none means all. ``NotFound``."""

    def delete(self, scope: Scope, name: str, target: str = "") -> None:
        """Raises ``NotFound``; also when ``target`` (a digest) is given and is not the image's any more."""


class ContainerStore(Protocol):
    """Containers: the metadata tasks are made from, kept as containerd's own message.

    Messages handed out belong to the caller.
    """

    def get(self, scope: Scope, id: str) -> containers_pb2.Container:
        """Raises ``NotFound``."""

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[containers_pb2.Container]: ...

    def create(self, scope: Scope, container: containers_pb2.Container) -> containers_pb2.Container:
        """Raises ``AlreadyExists``, ``InvalidArgument``. Sets the times."""

    def update(
        self, scope: Scope, container: containers_pb2.Container, fields: Sequence[str] = ()
    ) -> containers_pb2.Container:
        """``fields`` as in containerd: labels, spec, extensions, image, snapshot_key, and keys of the maps."""

    def delete(self, scope: Scope, id: str) -> None:
        """Raises ``NotFound``."""


class LeaseStore(Protocol):
    """Leases. Creating an object under ``Scope.lease`` adds it to that lease by itself."""

    def create(self, scope: Scope, id: str, labels: Mapping[str, str] = {}) -> Lease:
        """``id`` may be "" for a random one. Put ``GC_EXPIRE`` in labels: a lease without one lasts until deleted."""

    def delete(self, scope: Scope, id: str) -> None:
        """Raises ``NotFound``. What only this lease held is collected soon."""

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Lease]: ...

    def add_resource(self, scope: Scope, id: str, resource: Resource) -> None: ...

    def delete_resource(self, scope: Scope, id: str, resource: Resource) -> None: ...

    def resources(self, scope: Scope, id: str) -> Sequence[Resource]: ...


class Snapshotter(Protocol):
    """Layered file systems. Returns mounts and never mounts.

    Life cycle: ``prepare`` makes an active snapshot on a committed parent ("" for none); its mounts are written to;
    ``commit`` freezes it under a name (a chain ID by convention), a parent for others. ``view`` is a read-only
    ``prepare``. An active snapshot is removed or committed; a committed one can be removed when it has no children.
    """

    name: str

    def stat(self, scope: Scope, key: str) -> SnapshotInfo:
        """Raises ``NotFound``."""

    def prepare(self, scope: Scope, key: str, parent: str = "", labels: Mapping[str, str] = {}) -> list[Mount]:
        """Raises ``AlreadyExists`` (key), ``NotFound`` (parent), ``InvalidArgument`` (parent is not committed).

        Blocking only where layers are copied (``copies``)."""

    def view(self, scope: Scope, key: str, parent: str = "", labels: Mapping[str, str] = {}) -> list[Mount]:
        """As ``prepare``, read-only."""

    def mounts(self, scope: Scope, key: str) -> list[Mount]:
        """Mounts of an active snapshot or a view. Raises ``NotFound``."""

    def commit(self, scope: Scope, name: str, key: str, labels: Mapping[str, str] = {}) -> None:
        """Raises ``AlreadyExists`` (name), ``NotFound`` (key), ``FailedPrecondition`` (not active). Blocking."""

    def remove(self, scope: Scope, key: str) -> None:
        """Raises ``FailedPrecondition`` when it has children. The bytes are given back a moment later."""

    def usage(self, scope: Scope, key: str) -> Usage:
        """Blocking for active snapshots: their files are counted."""

    def update(self, scope: Scope, key: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> SnapshotInfo: ...

    def walk(self, scope: Scope, filters: Sequence[str] = ()) -> list[SnapshotInfo]: ...

    def cleanup(self) -> None:
        """Give back the bytes of removed snapshots now. Blocking."""

    @property
    def copies(self) -> bool:
        """Whether ``prepare`` copies the parent's files (slow: use a thread)."""


class Exchange(Protocol):
    """The event bus. Order of publication is order of delivery, per subscriber."""

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Wrap ``event`` (a ``containerd.events.*`` message) and hand it to every subscriber.

        Never blocks, never fails because of a subscriber; may be called from any thread.
        """

    def subscribe(self, filters: Iterable[str] = ()) -> AsyncIterator[types_pb2.Envelope]:
        """Events from now on of all namespaces, those matching one of ``filters`` (containerd's language)."""


class Collector(Protocol):
    """Garbage collection over labels and leases."""

    async def collect(self) -> None:
        """Remove everything that nothing refers to, now (``sync`` deletes)."""

    def schedule(self) -> None:
        """Ask for a collection soon. Idempotent, cheap; may be called from any thread."""

    def wake_at(self, moment: int) -> None:
        """Ask for a collection at ``moment``, when something expires. Cheap; may be called from any thread."""
