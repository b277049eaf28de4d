"""A container as the engine knows it: the document in ``engine.db`` and the values derived from it.

Rule: values are frozen; a change is a new document, written before anybody is told of it.
"""

from __future__ import annotations

import msgspec

from engine.containers.config import ContainerConfig, HostConfig, NetworkingConfig
from oci.image import Descriptor

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which Docker shows for "never"."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where a container is in its life. Times are nanoseconds since the epoch, 0 for never.

    ``status`` is one of created, running, paused, restarting, removing, exited, dead. A restarting container is
    between two runs and still counts as running for clients.
    """

    status: str = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0

    @property
    def running(self) -> bool:
        """Docker's ``State.Running``: there is a process, or there will be one again shortly."""
        return self.status in ("running", "paused", "restarting")

    @property
    def alive(self) -> bool:
        """Whether a task exists whose process has not exited."""
        return self.status in ("running", "paused")


class MountPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One resolved mount of a container; ``source`` is a path on the host ("" for tmpfs).

    ``type`` is ``bind``, ``volume`` or ``tmpfs``. ``options`` are further mount options as text (tmpfs: ``size=…``).
    ``subpath`` is what of a volume is mounted ("" for all of it). ``writable_below``: a read-only bind's sub-mounts
    stay as they are. ``labels`` and ``driver_options`` are of a volume that is still to be made.
    """

    type: str
    source: str = ""
    destination: str
    name: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    recursive: bool = True
    copy_up: bool = False
    anonymous: bool = False
    options: tuple[str, ...] = ()
    subpath: str = ""
    writable_below: bool = False
    labels: dict[str, str] | None = None
    driver_options: dict[str, str] | None = None


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a container that survives the daemon.

    ``config`` is already merged with the image's; ``path`` and ``args`` are what runs. ``name`` has no leading slash.
    ``created_at`` is in nanoseconds since the epoch. ``stopped_by_user`` keeps restart policies quiet. ``starting`` is
    set from just before the created task is told to run until that is answered or taken back.
    """

    id: str
    name: str
    created_at: int
    image_id: str
    image_manifest: Descriptor | None
    chain_id: str
    snapshotter: str
    platform: str
    path: str
    args: tuple[str, ...]
    config: ContainerConfig
    host: HostConfig
    networking: NetworkingConfig = NetworkingConfig()
    mounts: tuple[MountPoint, ...] = ()
    state: State = State()
    restart_count: int = 0
    stopped_by_user: bool = False
    ever_started: bool = False
    starting: bool = False


class RootfsMount(msgspec.Struct, frozen=True):
    """One mount of the snapshot, as the Snapshots service answers it (``overlay``, ``bind``)."""

    type: str
    source: str
    options: tuple[str, ...]


class SpecRequest(msgspec.Struct, frozen=True, kw_only=True):
    """All that ``engine.spec.build_spec(request) -> dict`` is given.

    ``netns``: path of the network namespace to join, None for the host's. ``pid_ns``/``ipc_ns``/``uts_ns``: namespace
    paths of another container for ``container:<id>`` modes, else None (``HostConfig`` then says host or private).
    ``files``: the directory that holds ``hostname``, ``hosts`` and ``resolv.conf``, bound into the container.
    ``rootfs``: the snapshot's mounts, for reading ``etc/passwd`` and ``etc/group`` before anything is mounted.
    ``shm_path``: a host directory to bind at ``/dev/shm`` (shared IPC), None for a tmpfs of ``HostConfig.ShmSize``.
    """

    container: Container
    rootfs: tuple[RootfsMount, ...]
    files: str
    netns: str | None = None
    pid_ns: str | None = None
    ipc_ns: str | None = None
    uts_ns: str | None = None
    shm_path: str | None = None
