"""The stores of the daemon, opened and put on the wire.

Rule: everything that keeps something is opened here, in order of dependence, and closed in reverse; a store that cannot
be opened stops the start with an error that names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from google.protobuf.message import Message

from containerd_py.content.store import Content
from containerd_py.diff.pool import LayerWorkers
from containerd_py.exchange import LocalExchange
from containerd_py.gc.collector import GarbageCollector
from containerd_py.metadata.containers import Containers
from containerd_py.metadata.database import Database
from containerd_py.metadata.images import Images
from containerd_py.metadata.leases import Leases
from containerd_py.metadata.namespaces import Namespaces
from containerd_py.metadata.sandboxes import Sandboxes
from containerd_py.mounts.manager import DIRECTORY, MountManager
from containerd_py.registry.hosts import RegistryConfig
from containerd_py.services.calls import Calls
from containerd_py.services.containers import ContainersService
from containerd_py.services.content import ContentService
from containerd_py.services.diff import DiffService
from containerd_py.services.images import ImagesService
from containerd_py.services.introspection import IntrospectionService, plugins
from containerd_py.services.leases import LeasesService
from containerd_py.services.mounts import MountsService
from containerd_py.services.namespaces import NamespacesService
from containerd_py.services.sandboxes import SandboxStoreService
from containerd_py.services.snapshots import SnapshotsService
from containerd_py.services.streaming import StreamingService, Streams
from containerd_py.services.transfer import TransferService
from containerd_py.services.version import VersionService
from containerd_py.settings import Settings
from containerd_py.snapshots.base import DirectorySnapshotter
from containerd_py.snapshots.choose import snapshotters as choose_snapshotters
from containerd_py.transfer import model as transfer_model
from containerd_py.transfer.transfers import Transfers
from containerd_py.unpack import Unpacker
from oci import errors

CONTENT = "io.containerd.content.v1.content"
SERVICES = (
    "containers",
    "content",
    "diff",
    "events",
    "images",
    "introspection",
    "leases",
    "mounts",
    "namespaces",
    "sandbox-controllers",
    "sandboxes",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
)


class Stores(NamedTuple):
    """What the daemon keeps, open."""

    database: Database
    collector: GarbageCollector
    namespaces: Namespaces
    containers: Containers
    content: Content
    images: Images
    leases: Leases
    snapshotters: Mapping[str, DirectorySnapshotter]
    workers: LayerWorkers
    transfers: Transfers
    mounts: MountManager


def open_stores(settings: Settings, exchange: LocalExchange, stack: contextlib.AsyncExitStack) -> Stores:
    """Open everything; ``stack`` closes it. Raises ``FailedPrecondition`` naming what cannot be used."""
    with _named("metadata database"):
        database = Database(f"{settings.root}/meta.db")
    stack.callback(database.close)
    collector = GarbageCollector(database, exchange)
    stack.push_async_callback(collector.close)

    def publish(namespace: str, topic: str, event: Message) -> None:
        exchange.publish(namespace, topic, event)
        if topic == "/snapshot/remove":
            collector.schedule()

    with _named("content store"):
        content = Content(database, f"{settings.root}/{CONTENT}", exchange, collector)
    with _named("snapshotters"):
        snapshotters = choose_snapshotters(settings.root, database, publish)
    with _named("layer workers"):
        directory = f"{settings.state}/layers"
        os.makedirs(directory, 0o700, exist_ok=True)
        workers = LayerWorkers(directory)
    stack.callback(workers.close)
    with _named("mount manager"):
        mounts = MountManager(database, f"{settings.state}/{DIRECTORY}/t", (settings.root,))
        mounts.load()
    collector.attach(content, snapshotters, mounts)
    images, leases = Images(database, exchange, collector), Leases(database, collector)
    unpacker = Unpacker(content, snapshotters, workers, database)
    transfers = Transfers(
        transfer_model.Stores(content, images, leases, unpacker, database.flushed),
        RegistryConfig(settings.registry_mirrors, settings.insecure_registries),
    )
    stack.push_async_callback(transfers.close)
    return Stores(
        database,
        collector,
        Namespaces(database, exchange),
        Containers(database, exchange, collector),
        content,
        images,
        leases,
        snapshotters,
        workers,
        transfers,
        mounts,
    )


def serve_stores(calls: Calls, stores: Stores, settings: Settings) -> None:
    """Add the services over ``stores`` to ``calls``."""
    database, collector = stores.database, stores.collector
    found = plugins(stores.snapshotters, SERVICES, settings.root)
    streams = Streams()
    calls.add(
        IntrospectionService(settings.root, found),
        VersionService(),
        NamespacesService(stores.namespaces, database),
        ContainersService(stores.containers, database),
        ContentService(stores.content, database),
        ImagesService(stores.images, database, collector),
        LeasesService(stores.leases, collector),
        SnapshotsService(stores.snapshotters, database),
        DiffService(stores.content, stores.workers, stores.snapshotters, database),
        SandboxStoreService(Sandboxes(database), database),
        StreamingService(streams),
        TransferService(stores.transfers, streams),
        MountsService(stores.mounts, database),
    )


@contextlib.contextmanager
def _named(store: str) -> Iterator[None]:
    """Failures of the block say which store it was."""
    try:
        yield
    except (errors.GantryError, OSError) as error:
        raise errors.FailedPrecondition(f"cannot open the {store}: {error}") from error
