"""What every part of the container service shares: the machines, their names, the peers, and how events are told.

Rule: nothing here acts on a container; it only finds, names and tells.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from engine.backend import Backend, translated
from engine.containers.machine import Machine
from engine.containers.model import Container, RootfsMount
from engine.containers.names import Names
from engine.containers.shm import SharedMemory
from engine.containers.volumes import Volumes
from engine.defaults import Defaults
from engine.events import EventBus
from engine.interfaces import Images, Networks
from engine.store import Store
from oci.errors import FailedPrecondition, NotFound
from oci.hostpaths import HostPaths
from protos.containerd import snapshots_pb2, types_pb2

MachineHook = Callable[[Machine], None]
ExecExitHook = Callable[[Machine, str, int, int], None]


class Registry:
    """The containers of this engine and what they stand on.

    Hooks are called on the loop and must not wait: ``started`` when a run has begun (also for runs found at the
    daemon's start), ``ended`` when one is over, ``exec_exits(machine, exec id, exit code, nanoseconds)`` when the
    supervisor tells of an exec's end, ``reconnected`` when events may have been missed and execs should be asked for.
    ``leaving`` is waited for: before a container's files go.
    """

    def __init__(
        self, store: Store, backend: Backend, bus: EventBus, images: Images, networks: Networks, paths: HostPaths
    ) -> None:
        self.store = store
        self.backend = backend
        self.bus = bus
        self.images = images
        self.networks = networks
        self.paths = paths
        self.volumes = Volumes(store, f"{paths.data_root}/volumes")
        self.volumes.bind_users(self._users_of_volume)
        self.subpaths = f"{paths.exec_root}/subpaths"
        """Where sub-paths of volumes are bound while a container takes them."""
        self.shm = SharedMemory(f"{paths.exec_root}/shm")
        self.cgroup_parent = ""
        """Where cgroups are made when a container does not say; "" for Docker's default."""
        self.defaults = Defaults()
        """What new containers get that do not ask."""
        self.machines: dict[str, Machine] = {}
        self.names = Names()
        self.released_volumes: set[tuple[str, str]] = set()
        """(container, volume) pairs that are being parted: the container's removal takes the volume with it."""
        self.started: list[MachineHook] = []
        self.ended: list[MachineHook] = []
        self.exec_exits: list[ExecExitHook] = []
        self.reconnected: list[Callable[[], None]] = []
        self.leaving: list[Callable[[Machine], Awaitable[None]]] = []

    def find(self, reference: str) -> Machine:
        """The container with this id, name or unique id prefix.

        Raises ``NotFound("No such container: x")`` or ``InvalidArgument`` for an ambiguous prefix.
        """
        machine = self.machines.get(self.names.resolve(reference))
        if machine is None:  # its name is taken, but it is not made yet
            raise NotFound(f"No such container: {reference}")
        return machine

    def running(self, reference: str) -> Machine:
        """``find``, for what needs a process; raises ``FailedPrecondition("container <id> is not running")``."""
        machine = self.find(reference)
        if not machine.doc.state.alive:
            raise FailedPrecondition(f"container {machine.id} is not running")
        return machine

    def publish(self, machine: Machine, action: str, attributes: dict[str, str] | None = None) -> None:
        """Tell a container event: Docker's attributes are the labels, ``image``, ``name`` and what ``action`` adds."""
        doc = machine.doc
        told = {**(doc.config.labels or {})}
        if doc.config.image:
            told["image"] = doc.config.image
        told["name"] = doc.name
        self.bus.publish("container", action, doc.id, {**told, **(attributes or {})})

    def directory(self, container_id: str) -> str:
        """Where the engine keeps a container's files."""
        return f"{self.paths.data_root}/containers/{container_id}"

    def log_directory(self, container_id: str) -> str:
        """The raw log of a container (docs/internals.md)."""
        return f"{self.directory(container_id)}/log"

    def attach_socket(self, container_id: str) -> str:
        """Where the container's shim listens for attach clients."""
        return f"{self.paths.exec_root}/a/{container_id[:32]}"

    async def rootfs(self, machine: Machine) -> tuple[RootfsMount, ...]:
        """The mounts of the container's snapshot; asks once."""
        if machine.rootfs is None:
            request = snapshots_pb2.MountsRequest(snapshotter=machine.doc.snapshotter, key=machine.id)
            with translated():
                answer = await self.backend.snapshots.Mounts(request)
            machine.rootfs = rootfs_mounts(answer.mounts)
        return machine.rootfs

    def documents(self) -> list[Container]:
        """Every container's document, newest first."""
        return sorted((m.doc for m in self.machines.values()), key=lambda d: d.created_at, reverse=True)

    def _users_of_volume(self, name: str) -> list[str]:
        return [
            m.id
            for m in self.machines.values()
            if any(p.name == name for p in m.doc.mounts) and (m.id, name) not in self.released_volumes
        ]


def rootfs_mounts(mounts: Iterable[types_pb2.Mount]) -> tuple[RootfsMount, ...]:
    """Mounts of the Snapshots service."""
    return tuple(RootfsMount(m.type, m.source, tuple(m.options)) for m in mounts)
