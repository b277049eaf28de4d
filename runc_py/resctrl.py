"""Cache and memory bandwidth of Intel RDT and its relatives (``linux.intelRdt``), by the resctrl filesystem.

Rule: a group that the runtime made is the runtime's to remove; a group that existed (``closID``) is only joined.
Sources: runtime-spec ``config-linux.md#intelrdt``, kernel ``Documentation/filesystems/resctrl.rst``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import os

if TYPE_CHECKING:
    from runc_py.state import ContainerState


class Group(NamedTuple):
    """A resctrl directory; ``made`` when it is the runtime's own."""

    path: str
    made: bool

    def enter(self, pid: int) -> None:
        """Put a process and its future children into the group."""
        _write(f"{self.path}/tasks", str(pid))

    def remove(self) -> None:
        """Remove the group if it is ours; a missing one is fine."""
        if self.made:
            try:
                os.rmdir(self.path)
            except FileNotFoundError:
                return
            except OSError as error:
                raise RuntimeFailure(f"linux.intelRdt: cannot remove {self.path}: {error.strerror}") from error


def check_intel_rdt(wanted: Any) -> None:
    """Raise InvalidSpec for an object that cannot be meant."""
    if not isinstance(wanted, Mapping):
        raise InvalidSpec("linux.intelRdt: must be an object")
    name = wanted.get("closID")
    if name is not None and (not isinstance(name, str) or "/" in name or name in ("", ".", "..") or "\n" in name):
        raise InvalidSpec(f'linux.intelRdt.closID: "{name}" is not the name of a directory')
    for key in ("l3CacheSchema", "memBwSchema"):
        text = wanted.get(key) or ""
        if not isinstance(text, str) or "\n" in text:
            raise InvalidSpec(f"linux.intelRdt.{key}: must be one line")
    lines = wanted.get("schemata") or []
    if not isinstance(lines, list) or not all(isinstance(line, str) and "\n" not in line for line in lines):
        raise InvalidSpec("linux.intelRdt.schemata: must be a list of lines")


def planned_group(wanted: Mapping[str, Any], container_id: str, mount_point: str = "") -> Group:
    """The group that ``create_group`` will give, to be recorded before it is made."""
    path = f"{mount_point or find_mount()}/{wanted.get('closID') or container_id}"
    return Group(path, not os.path.isdir(path))


def create_group(wanted: Mapping[str, Any], group: Group) -> Group:
    """Make or find the group that ``linux.intelRdt`` asks for and write its schemata."""
    path = group.path
    try:
        os.mkdir(path, 0o755)
        made = True
    except FileExistsError:
        made = False
    except OSError as error:
        raise RuntimeFailure(f"linux.intelRdt: cannot make {path}: {error.strerror}") from error
    group = Group(path, made)
    try:
        write_schemata(wanted, group)
    except RuntimeFailure:
        group.remove()
        raise
    return group


def write_schemata(wanted: Mapping[str, Any], group: Group) -> None:
    """What the group may use; lines that are not given stay."""
    lines = [line for line in (wanted.get("l3CacheSchema"), wanted.get("memBwSchema")) if line]
    lines += wanted.get("schemata") or []
    if lines:
        _write(f"{group.path}/schemata", "".join(f"{line}\n" for line in lines))


def update_group(wanted: Mapping[str, Any], container: ContainerState, pids: list[int], mount_point: str = "") -> None:
    """Change a running container's group; one that has none gets its own, with all its processes in it."""
    check_intel_rdt(wanted)
    if container.resctrl:
        write_schemata(wanted, Group(*container.resctrl))
        return
    planned = planned_group({}, container.id, mount_point)
    container.resctrl = list(planned)
    container.save()
    try:
        group = create_group(wanted, planned)
        for pid in pids:
            group.enter(pid)
    except RuntimeFailure:
        planned.remove()
        container.resctrl = None
        container.save()
        raise


def find_mount() -> str:
    """Where resctrl is mounted. Raises RuntimeFailure where it is not."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if " - resctrl " in line:
                return line.split(" ")[4]
    raise RuntimeFailure(
        "linux.intelRdt: this host has no resctrl filesystem: mount -t resctrl resctrl /sys/fs/resctrl, "
        "where the processor has RDT"
    )


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailure(f"linux.intelRdt: cannot write {text!r} to {path}: {error.strerror}") from error
