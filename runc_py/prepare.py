"""What a container's parent opens for it before the child is cloned: mounts that only the parent may make.

Rule: the child gets descriptors, never rights. With a user namespace the child is nobody on the host: sources of bind
mounts may be out of its sight, device nodes are refused to it, and id mappings need the host's CAP_SYS_ADMIN. Sources:
mount_setattr(2) "ID-mapped mounts", user_namespaces(7).
"""

from __future__ import annotations

import errno

from runc_py import syscalls
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os, signal, stat, suppress
from runc_py.operations import BindMount, MakeDevice

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runc_py.namespaces import Namespaces
    from runc_py.operations import Operation

DEVICES_DIRECTORY = "devices"
_LINKED = syscalls.MS_SHARED | syscalls.MS_SLAVE


class Prepared:
    """The descriptors; ``close`` is the parent's, after the child has its copies."""

    __slots__ = ("_directory", "_linux", "_namespaces", "_userns", "fds")

    def __init__(self, linux: dict[str, Any], namespaces: Namespaces, directory: str) -> None:
        self._linux = linux
        self._namespaces = namespaces
        self._directory = directory
        self._userns: dict[tuple[Any, ...], int] = {}
        self.fds: list[int] = []

    def prepare(self, operations: list[Operation], *, binds: bool = False) -> None:
        """Replace, in place, the operations that need it by ones that hold a descriptor; with ``binds`` all binds."""
        # Without root the child has more rights than we, in its own user namespace.
        userns = "user" in self._namespaces.kinds and os.geteuid() == 0
        for index, operation in enumerate(operations):
            if isinstance(operation, BindMount) and (binds or userns or operation.id_mapped):
                if operation.options.copy_symlink and os.path.islink(operation.source):
                    continue
                operations[index] = operation._replace(prepared=self._bind(operation))
            elif isinstance(operation, MakeDevice) and operation.bind and userns:
                operations[index] = operation._replace(prepared=self._device(operation, index))

    def close(self) -> None:
        """Close the parent's copies."""
        for fd in (*self.fds, *self._userns.values()):
            os.close(fd)
        self.fds, self._userns = [], {}

    def _keep(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def _bind(self, operation: BindMount) -> int:
        try:
            mount = self._keep(operation.open_source())
            if not any(kind & _LINKED for kind, _ in operation.options.propagation):
                # A clone made here is a peer of the host's mount: what is mounted below it must not come out again.
                syscalls.mount_setattr(mount, propagation=syscalls.MS_PRIVATE, recursive=True)
            if operation.id_mapped:
                syscalls.mount_setattr(
                    mount,
                    set_=syscalls.MOUNT_ATTR_IDMAP,
                    userns=self._mapping(operation),
                    recursive=operation.options.idmap == "ridmap",
                )
        except OSError as error:
            hint = ""
            if operation.id_mapped and error.errno == errno.EINVAL:
                hint = " (does the source's filesystem support id-mapped mounts on this kernel?)"
            raise RuntimeFailure(f"{operation.describe()}: {error.strerror}{hint}") from error
        return mount

    def _mapping(self, operation: BindMount) -> int:
        """A user namespace with the mount's mappings; without any of its own, with the container's."""
        own = bool(operation.uid_mappings or operation.gid_mappings)
        if not own and "user" in self._namespaces.joined:
            return self._namespaces.joined["user"]
        own_maps = {"uidMappings": operation.uid_mappings, "gidMappings": operation.gid_mappings}
        source: dict[str, Any] = own_maps if own else self._linux
        uids, gids = source.get("uidMappings") or (), source.get("gidMappings") or ()
        if not uids or not gids:
            raise InvalidSpec(f"mounts: {operation.destination}: an id-mapped mount needs uidMappings and gidMappings")
        key = (repr(uids), repr(gids))
        if key not in self._userns:
            self._userns[key] = user_namespace(uids, gids)
        return self._userns[key]

    def _device(self, operation: MakeDevice, index: int) -> int:
        """A mount of the host's node where that will do, else of one with the owner and mode that the spec asks for."""
        source = operation.path
        if not _usual_node(operation):
            with suppress(PermissionError):
                source = self._make_node(operation, index)
        try:
            mount = self._keep(syscalls.open_tree(syscalls.AT_FDCWD, source, syscalls.OPEN_TREE_CLONE))
            if source != operation.path:
                syscalls.mount_setattr(mount, clear=syscalls.MOUNT_ATTR_NODEV)
        except OSError as error:
            raise RuntimeFailure(f"{operation.describe()}: {error.strerror}") from error
        return mount

    def _make_node(self, operation: MakeDevice, index: int) -> str:
        directory = f"{self._directory}/{DEVICES_DIRECTORY}"
        path = f"{directory}/{index}"
        kind = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[operation.type]
        device = 0 if operation.type == "p" else os.makedev(operation.major, operation.minor)
        os.makedirs(directory, 0o700, exist_ok=True)
        os.mknod(path, kind | 0o600, device)
        os.chown(path, self._host_id("uid", operation.uid), self._host_id("gid", operation.gid))
        os.chmod(path, operation.mode)
        return path

    def _host_id(self, kind: str, number: int) -> int:
        for entry in self._linux.get(f"{kind}Mappings") or ():
            inside = number - int(entry["containerID"])
            if 0 <= inside < entry["size"]:
                return int(entry["hostID"]) + inside
        return 65534 if self._linux.get(f"{kind}Mappings") else number


def _usual_node(operation: MakeDevice) -> bool:
    """Whether the host has the same node, for everybody: null, zero and their like."""
    if (operation.uid, operation.gid, operation.mode) != (0, 0, 0o666):
        return False
    try:
        return os.stat(operation.path).st_rdev == os.makedev(operation.major, operation.minor)
    except OSError:
        return False


def user_namespace(uids: Sequence[dict[str, int]], gids: Sequence[dict[str, int]]) -> int:
    """A descriptor of a new user namespace with these mappings; no process stays in it."""
    from runc_py.namespaces import write_id_maps

    parent = os.getpid()
    pid, pidfd = syscalls.clone(syscalls.CLONE_NEWUSER)
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it died before the line above
            signal.pause()
        os._exit(0)
    try:
        write_id_maps(pid, {"uidMappings": uids, "gidMappings": gids})
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(pid, 0)
