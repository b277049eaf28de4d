"""What the runtime knows about a container: ``<root>/<id>/state.json``, and the status that follows from it.

Rule: a status is never stored, it is observed: the process of the recorded pid *and* start time, the frozen cgroup, the
socket on which init waits for ``start``.

    creating ──▶ created ──start──▶ running ◀──pause/resume──▶ paused
        │           │                  │                          │
        └───────────┴────── exit ──────┴───────────▶ stopped ◀────┘
"""

from __future__ import annotations

from runc_py import documents, names
from runc_py.errors import ContainerExists, ContainerNotFound, InvalidState, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os, read_file

if TYPE_CHECKING:
    from typing import Any

STATE_FILE = "state.json"
START_SOCKET = "init.sock"
STARTED_SOCKET = "started.sock"
"""``START_SOCKET`` from the moment on at which somebody has made up their mind to start."""
SECCOMP_FILE = "seccomp.bpf"

ALLOWED = {
    "start": ("created",),
    "exec": ("created", "running", "paused"),
    "kill": ("created", "running", "paused"),
    "pause": ("created", "running"),
    "resume": ("paused",),
    "update": ("created", "running", "paused"),
    "delete": ("created", "stopped"),
}
"""The one table of which operation fits which status."""


class ContainerState:
    """A container's record. ``spec`` is the checked spec without its seccomp profile, which is kept compiled."""

    __slots__ = (
        *("bundle", "cgroup", "created", "directory", "id", "owner", "pid", "resctrl", "rootfs", "seccomp", "spec"),
        "ticks",
    )

    def __init__(self, directory: str, record: dict[str, Any]) -> None:
        self.directory = directory
        self.id: str = record["id"]
        self.pid: int = record["pid"]
        self.ticks: int = record["start_time"]
        self.created: str = record["created"]
        self.bundle: str = record["bundle"]
        self.rootfs: str = record["rootfs"]
        self.cgroup: dict[str, Any] = record["cgroup"]
        self.owner: int = record["owner"]
        self.resctrl: list[Any] | None = record.get("resctrl")
        self.seccomp: dict[str, Any] | None = record["seccomp"]
        self.spec: dict[str, Any] = record["spec"]

    def save(self) -> None:
        """Write the record, atomically. The directory is on tmpfs and means nothing after a reboot: no fsync."""
        record = {
            "id": self.id,
            "pid": self.pid,
            "start_time": self.ticks,
            "created": self.created,
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "cgroup": self.cgroup,
            "owner": self.owner,
            "resctrl": self.resctrl,
            "seccomp": self.seccomp,
            "spec": self.spec,
        }
        write_atomically(self.directory, STATE_FILE, documents.dumps(record).encode())

    @property
    def process(self) -> dict[str, Any]:
        """The spec's process object."""
        process: dict[str, Any] = self.spec.get("process") or {}
        return process

    @property
    def namespaces(self) -> list[dict[str, Any]]:
        """The spec's namespace entries."""
        entries: list[dict[str, Any]] = (self.spec.get("linux") or {}).get("namespaces") or []
        return entries

    def hooks(self, kind: str) -> list[dict[str, Any]]:
        """The hooks of one kind."""
        entries: list[dict[str, Any]] = (self.spec.get("hooks") or {}).get(kind) or []
        return entries

    def alive(self) -> bool:
        """Whether init exists and is no zombie; another process that got its pid does not count."""
        found = process_status(self.pid) if self.pid > 0 else None
        return found is not None and found[0] not in "ZX" and found[1] == self.ticks

    def status(self) -> str:
        """creating, created, running, paused or stopped, as of now."""
        if self.pid == 0:
            return "creating"
        if not self.alive():
            return "stopped"
        from runc_py import cgroups

        if cgroups.load(self.cgroup).frozen():
            return "paused"
        return "created" if os.path.exists(f"{self.directory}/{START_SOCKET}") else "running"

    def require(self, operation: str) -> str:
        """The status, if ``operation`` is allowed in it; InvalidState otherwise."""
        status = self.status()
        if status not in ALLOWED[operation]:
            raise InvalidState(f"cannot {operation} container {self.id}: it is {status}")
        return status

    def oci_state(self, status: str) -> dict[str, Any]:
        """The runtime spec's state object, as hooks and ``state`` get it."""
        state: dict[str, Any] = {
            "ociVersion": self.spec.get("ociVersion", "1.0.2"),
            "id": self.id,
            "status": status,
            "pid": 0 if status == "stopped" else self.pid,
            "bundle": self.bundle,
        }
        if self.spec.get("annotations"):
            state["annotations"] = self.spec["annotations"]
        return state


def process_status(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks) of a process; None when there is none. Source: proc_pid_stat(5)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    fields = data[data.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19])


def checked_id(container_id: str) -> str:
    """``container_id`` if it may become a directory name. Raises InvalidSpec."""
    return names.container_id(container_id)


def reserve(root: str, container_id: str) -> str:
    """Make the directory of a new container; it is what makes an id taken."""
    directory = os.path.join(os.path.abspath(root), names.container_id(container_id))
    try:
        os.mkdir(directory, 0o711)
    except FileExistsError:
        raise ContainerExists(container_id) from None
    except FileNotFoundError:
        os.makedirs(root, 0o700, exist_ok=True)
        return reserve(root, container_id)
    except OSError as error:
        raise RuntimeFailure(f"cannot make {directory}: {error.strerror}") from error
    return directory


def load(root: str, container_id: str) -> ContainerState:
    """The record of a container. Raises ContainerNotFound."""
    directory = os.path.join(os.path.abspath(root), names.container_id(container_id))
    try:
        record = documents.loads(read_file(f"{directory}/{STATE_FILE}"))
        state = ContainerState(directory, record)
    except (FileNotFoundError, NotADirectoryError):
        raise ContainerNotFound(container_id) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeFailure(f"the state of container {container_id} cannot be read: {error!r}") from error
    if state.id != container_id:
        raise RuntimeFailure(f"the state in {directory} is of another container: {state.id}")
    return state


def forget(directory: str) -> None:
    """Remove a container's directory; a missing one is fine."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    forget(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(directory)
    except FileNotFoundError:
        return


def write_atomically(directory: str, name: str, data: bytes) -> None:
    """Write a file so that readers see the old or the new content."""
    temporary = f"{directory}/.{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(temporary, f"{directory}/{name}")
