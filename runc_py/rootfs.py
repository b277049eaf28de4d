"""The recipe of a container's root: from the spec to a list of operations, and the change into it.

Rule: the order is the data. Mounts in the spec's order, then device nodes and links, then the console, masked and
read-only paths, and last the read-only bits that had to wait. Source: runtime-spec ``config-linux.md#default-devices``.
"""

from __future__ import annotations

from runc_py import operations, syscalls
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os
from runc_py.mount_options import classic_flags, parse_options
from runc_py.paths import Root
from runc_py.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runc_py.cgroups import ContainerMounts
    from runc_py.runtime import RootfsMount

DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
DEFAULT_LINKS = (
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
ROOT_PROPAGATION = {
    "": syscalls.MS_SLAVE | syscalls.MS_REC,
    "private": syscalls.MS_PRIVATE,
    "rprivate": syscalls.MS_PRIVATE | syscalls.MS_REC,
    "slave": syscalls.MS_SLAVE,
    "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "shared": syscalls.MS_SHARED,
    "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
    "unbindable": syscalls.MS_UNBINDABLE,
    "runbindable": syscalls.MS_UNBINDABLE | syscalls.MS_REC,
}


class RootfsPlan:
    """What to do before (``setup``) and after (``finish``) the runtime's hooks."""

    __slots__ = ("finish", "setup")

    def __init__(self, setup: list[operations.Operation], finish: list[operations.Operation]) -> None:
        self.setup = setup
        self.finish = finish


def plan_rootfs(spec: Spec, bundle: str, cgroup_mounts: ContainerMounts | None, userns: bool) -> RootfsPlan:
    """The operations for ``spec``; ``cgroup_mounts`` is what its mount of type cgroup means."""
    linux: dict[str, Any] = spec.get("linux") or {}
    setup: list[operations.Operation] = []
    late: list[operations.Operation] = []
    host_dev = False
    for entry in spec.get("mounts") or ():
        operation = mount_operation(entry, bundle, cgroup_mounts, linux.get("mountLabel") or "")
        setup.append(operation)
        destination = os.path.normpath("/" + entry["destination"].lstrip("/"))
        if isinstance(operation, operations.BindMount) and destination == "/dev":
            host_dev = True
        if isinstance(operation, operations.FilesystemMount) and operation.late_read_only:
            late.append(operations.ReadOnlyMount(operation.destination))
    if not host_dev:
        setup += _device_operations(linux, userns)
    process: dict[str, Any] = spec.get("process") or {}
    if process.get("cwd", "/") != "/":
        setup.append(operations.MakeDirectory(process["cwd"]))
    finish: list[operations.Operation] = list(late)
    finish += [operations.ReadOnlyPath(path) for path in linux.get("readonlyPaths") or ()]
    if linux.get("maskedPaths"):
        finish.append(operations.MaskPaths(tuple(linux["maskedPaths"])))
    if (spec.get("root") or {}).get("readonly"):
        finish.append(operations.ReadOnlyMount("/"))
    return RootfsPlan(setup, finish)


def mount_operation(
    entry: dict[str, Any], bundle: str, cgroup_mounts: ContainerMounts | None, label: str
) -> operations.Operation:
    kind = entry.get("type") or "none"
    options = parse_options(entry.get("options") or ())
    destination = os.path.normpath("/" + entry["destination"].lstrip("/"))
    mappings = tuple(entry.get("uidMappings") or ()), tuple(entry.get("gidMappings") or ())
    if options.bind or kind == "bind":
        source = os.path.join(bundle, entry.get("source") or "")
        return operations.BindMount(source, destination, options, *mappings)
    if options.idmap or any(mappings):
        raise InvalidSpec(f"mounts: {destination}: only bind mounts can be id-mapped")
    if kind in ("cgroup", "cgroup2"):
        if cgroup_mounts is None:
            raise RuntimeFailure(f"cannot mount cgroups on {destination}: cgroups are disabled")
        return operations.CgroupTree(destination, options, cgroup_mounts.mounts, cgroup_mounts.symlinks)
    late = options.read_only and kind == "tmpfs" and (destination == "/dev" or options.copy_up)
    if label and kind in ("tmpfs", "devpts", "mqueue"):
        options = options._replace(data=(*options.data, f"context={label}"))
    return operations.FilesystemMount(kind, entry.get("source") or kind, destination, options, late)


def _device_operations(linux: dict[str, Any], userns: bool) -> list[operations.Operation]:
    found: list[operations.Operation] = []
    listed = {entry.get("path") for entry in linux.get("devices") or ()}
    for path, major, minor in DEFAULT_DEVICES:
        if path not in listed:
            found.append(operations.MakeDevice(path, "c", major, minor, 0o666, 0, 0, userns))
    for entry in linux.get("devices") or ():
        if entry["path"] == "/dev/ptmx":
            continue  # belongs to the container's own devpts
        found.append(
            operations.MakeDevice(
                *(os.path.normpath(entry["path"]), entry.get("type") or "c"),
                *(int(entry.get("major") or 0), int(entry.get("minor") or 0)),
                *(int(entry.get("fileMode") or 0o666) & 0o7777, int(entry.get("uid") or 0), int(entry.get("gid") or 0)),
                userns,
            )
        )
    found += [operations.MakeSymlink(path, target) for path, target in DEFAULT_LINKS]
    if os.path.exists("/proc/kcore"):
        found.append(operations.MakeSymlink("/dev/core", "/proc/kcore"))
    return found


def mount_rootfs(path: str, mounts: Sequence[RootfsMount], propagation: str) -> Root:
    """Make the rootfs a mount of this mount namespace and open it.

    The namespace's mounts stop propagating to the host first (unless the spec asks for shared ones).
    """
    syscalls.mount(None, "/", None, ROOT_PROPAGATION.get(propagation, ROOT_PROPAGATION[""]))
    if "shared" in propagation:
        _make_parent_private(path)
    if mounts:
        for entry in mounts:
            _mount_layer(entry, path)
    else:
        syscalls.mount(path, path, "bind", syscalls.MS_BIND | syscalls.MS_REC)
        # Not a slave of the mount below: nothing of the host's arrives in the root, and criu could not make it anew.
        syscalls.mount(None, path, None, syscalls.MS_PRIVATE)
    return Root(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def _mount_layer(entry: RootfsMount, path: str) -> None:
    flags, data = classic_flags(entry.options)
    kind = entry.type or "bind"
    if kind == "bind":
        flags |= syscalls.MS_BIND
    if len(data) >= os.sysconf("SC_PAGE_SIZE"):
        _mount_many_layers(kind, entry, path)
        return
    try:
        syscalls.mount(entry.source, path, kind, flags, data)
        if flags & syscalls.MS_BIND and flags & ~(syscalls.MS_BIND | syscalls.MS_REC):
            syscalls.mount(None, path, None, flags | syscalls.MS_REMOUNT)
    except OSError as error:
        raise RuntimeFailure(f"cannot mount {kind} rootfs on {path}: {error.strerror} ({data[:512]})") from error


def _mount_many_layers(kind: str, entry: RootfsMount, path: str) -> None:
    """Overlay whose options do not fit in mount(2)'s page: one ``lowerdir+`` a layer (Linux 6.8)."""
    options = parse_options(entry.options)
    context = syscalls.fsopen(kind)
    try:
        for option in options.data:
            key, separator, value = option.partition("=")
            if key == "lowerdir":
                for layer in value.split(":"):
                    syscalls.fsconfig(context, "lowerdir+", layer)
            else:
                syscalls.fsconfig(context, key, value if separator else None)
        mount = syscalls.fsmount(context, options.set)
    except OSError as error:
        raise RuntimeFailure(f"cannot mount {kind} rootfs of {len(entry.options)} options: {error}") from error
    finally:
        os.close(context)
    target = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.move_mount(mount, target, path)
    os.close(mount)
    os.close(target)


def _make_parent_private(path: str) -> None:
    """pivot_root(2) refuses a shared parent mount; find the mount the rootfs is on and make it private."""
    parent = path
    while True:
        try:
            syscalls.mount(None, parent, None, syscalls.MS_PRIVATE)
            return
        except OSError:
            if parent == "/":
                raise
            parent = os.path.dirname(parent)


def change_root(root: Root, *, no_pivot: bool, path: str) -> None:
    """Make the rootfs ``/`` of this process and let go of the host's mounts."""
    os.fchdir(root.fd)
    if no_pivot:
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
        os.chdir("/")
        return
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.pivot_root(".", ".")
    except OSError as error:
        raise RuntimeFailure(f"pivot_root into {path}: {error.strerror}") from error
    # Old and new root are stacked at the same place. The old one becomes slave, so that unmounting it does not reach
    # the host, and only that one: what the container shares with the host stays shared.
    os.fchdir(old)
    os.close(old)
    syscalls.mount(None, ".", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
