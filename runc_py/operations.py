"""Steps that turn a directory into a container's root, as objects.

Rule: an operation is data until ``execute`` runs. ``describe`` says in one line what it will do, so the order of a
set-up is tested without privileges and printed by ``--debug``. Every target is reached through the ``Root`` descriptor.
"""

from __future__ import annotations

import errno

from runc_py import syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, NamedTuple, os, stat
from runc_py.mount_options import MountOptions, parse_options
from runc_py.paths import Root, is_device, is_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    class Operation(Protocol):
        """One step of the set-up."""

        def describe(self) -> str:
            """The step in one line."""

        def execute(self, root: Root) -> None:
            """Do it. Raises OSError or RuntimeFailure."""


_ALLOWED_IN_PROC = frozenset(
    {
        *("/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime"),
        *("/proc/loadavg", "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid"),
        "/proc/sys/crypto/fips_enabled",
    }
)
"""Files of /proc that lxcfs and its like may replace; any other mount there could fool the runtime."""


def _attach(mount: int, target: int, destination: str) -> None:
    try:
        syscalls.move_mount(mount, target, destination)
    finally:
        os.close(mount)
        os.close(target)


def _apply_attributes(mount: int, options: MountOptions, *, skip: int = 0) -> None:
    if options.set_all | options.clear_all:
        syscalls.mount_setattr(mount, set_=options.set_all, clear=options.clear_all, recursive=True)
    clear = options.clear | (syscalls.MOUNT_ATTR_ATIME if options.set & syscalls.MOUNT_ATTR_ATIME else 0)
    if (options.set & ~skip) | clear:
        syscalls.mount_setattr(mount, set_=options.set & ~skip, clear=clear)
    for propagation, recursive in options.propagation:
        syscalls.mount_setattr(mount, propagation=propagation, recursive=recursive)


class FilesystemMount(NamedTuple):
    """A new superblock (proc, sysfs, tmpfs, devpts, mqueue …) at ``destination``.

    With ``late_read_only`` the read-only bit waits for a later step, because devices or copies go in first.
    """

    type: str
    source: str
    destination: str
    options: MountOptions
    late_read_only: bool = False

    def describe(self) -> str:
        return f"mount {self.type} on {self.destination}"

    def execute(self, root: Root) -> None:
        plain = self.type in ("proc", "sysfs")
        if plain:
            # A symlink there would put the filesystem elsewhere and leave /proc itself to the image.
            target = _ordinary_directory(root, self.destination, self.type)
        else:
            target = root.make_directory(self.destination)
        mode = stat.S_IMODE(os.fstat(target).st_mode)
        if self._mounted_at_once(target, mode):
            os.close(target)
            return
        mount = self._new_mount(mode)
        skip = syscalls.MOUNT_ATTR_RDONLY if self.late_read_only else 0
        _apply_attributes(mount, self.options, skip=skip)
        if self.options.copy_up:
            _copy_tree(os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), mount)
        _attach(mount, target, self.destination)

    def _mounted_at_once(self, target: int, mode: int) -> bool:
        """Try one mount(2) in place of ten calls of the new kind, which say what exactly was wrong if it fails.

        Not for a read-only one: there mount(2) would make the filesystem itself read-only, not only this mount of it.
        """
        flags, data = self.options.classic, self._data(mode)
        if flags is None or self.options.read_only or self.options.copy_up or any("," in option for option in data):
            return False
        try:
            syscalls.mount(self.source, f"/proc/self/fd/{target}", self.type, flags, ",".join(data))
        except OSError:
            return False
        return True

    def _data(self, mode: int) -> tuple[str, ...]:
        data = self.options.data
        if self.type == "tmpfs" and not any(option.startswith("mode=") for option in data):
            return (*data, f"mode={mode:o}")  # a tmpfs looks like the directory it covers
        return data

    def _new_mount(self, mode: int) -> int:
        context = syscalls.fsopen(self.type)
        try:
            if self.source:
                syscalls.fsconfig(context, "source", self.source)
            for flag in self.options.superblock:
                syscalls.fsconfig(context, flag)
            for option in self._data(mode):
                key, separator, value = option.partition("=")
                syscalls.fsconfig(context, key, value if separator else None)
            return syscalls.fsmount(context)
        finally:
            os.close(context)


class BindMount(NamedTuple):
    """A host file or directory at ``destination``; the mount point is made as what the source is.

    ``prepared`` is a detached mount of the source that the parent made: with a user namespace the child may no longer
    see it, and only the parent may give it id mappings.
    """

    source: str
    destination: str
    options: MountOptions
    uid_mappings: tuple[dict[str, int], ...] = ()
    gid_mappings: tuple[dict[str, int], ...] = ()
    prepared: int = -1

    @property
    def id_mapped(self) -> bool:
        """Whether owners are translated."""
        return bool(self.options.idmap or self.uid_mappings or self.gid_mappings)

    def describe(self) -> str:
        return f"bind {self.source} on {self.destination}{' id-mapped' if self.id_mapped else ''}"

    def open_source(self) -> int:
        """A detached mount of the source; in the parent or in the child."""
        flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if self.options.recursive else 0)
        if self.options.source_nofollow or self.options.copy_symlink:
            flags |= syscalls.AT_SYMLINK_NOFOLLOW
        return syscalls.open_tree(syscalls.AT_FDCWD, self.source, flags)

    def execute(self, root: Root) -> None:
        if self.options.copy_symlink and os.path.islink(self.source):
            MakeSymlink(self.destination, os.readlink(self.source)).execute(root)
            return
        mount = self.prepared if self.prepared >= 0 else self.open_source()
        target = self._mount_point(root, is_directory(mount))
        _refuse_in_proc(target, mount, self.destination)
        _apply_attributes(mount, self.options)
        _attach(mount, target, self.destination)

    def _mount_point(self, root: Root, directory: bool) -> int:
        if self.options.target_nofollow:
            parent, name = os.path.split(self.destination)
            container = root.make_directory(parent)
            try:
                return syscalls.openat2(container, name, os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_BENEATH)
            except FileNotFoundError:
                pass
            finally:
                os.close(container)
        make = root.make_directory if directory else root.make_file
        return make(self.destination, 0o755)


class CgroupTree(NamedTuple):
    """The container's own cgroups at ``destination`` (see ``cgroups.ContainerMounts``)."""

    destination: str
    options: MountOptions
    mounts: tuple[Any, ...]
    symlinks: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        return f"mount cgroups on {self.destination}"

    def execute(self, root: Root) -> None:
        several = len(self.mounts) > 1
        top = self._mount(self.mounts[0], skip=syscalls.MOUNT_ATTR_RDONLY if several else 0)
        try:
            syscalls.move_mount(top, target := root.make_directory(self.destination), self.destination)
            os.close(target)
            # The rest goes into the first mount, by its descriptor: it is our own, and nobody else has seen it.
            for entry in self.mounts[1:]:
                if entry.type == "cgroup" and self.options.classic is not None:
                    self._mount_at_once(entry, top, self.options.classic)
                else:
                    _attach(self._mount(entry), _made_inside(top, entry.name), f"{self.destination}/{entry.name}")
            for name, link in self.symlinks:
                os.symlink(link, name, dir_fd=top)
            if several and self.options.read_only:
                syscalls.mount_setattr(top, set_=syscalls.MOUNT_ATTR_RDONLY)
        finally:
            os.close(top)

    def _mount_at_once(self, entry: Any, top: int, flags: int) -> None:
        """One mount(2) in place of eight calls of the new kind: there are a dozen controllers."""
        os.mkdir(entry.name, 0o755, dir_fd=top)
        named = any(option.startswith("name=") for option in entry.options)
        data = ",".join(("none", *entry.options) if named else entry.options)
        syscalls.mount(entry.source, f"/proc/self/fd/{top}/{entry.name}", entry.type, flags, data)

    def _mount(self, entry: Any, *, skip: int = 0) -> int:
        if entry.type == "bind":
            mount = syscalls.open_tree(syscalls.AT_FDCWD, entry.source, syscalls.OPEN_TREE_CLONE)
        else:
            mount = _simple_mount(entry.type, entry.source, entry.options)
        _apply_attributes(mount, self.options, skip=skip)
        return mount


def _made_inside(directory: int, name: str) -> int:
    os.mkdir(name, 0o755, dir_fd=directory)
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
    return syscalls.openat2(directory, name, os.O_PATH | os.O_DIRECTORY, resolve)


def _simple_mount(kind: str, source: str, options: Sequence[str]) -> int:
    """A filesystem whose options mix its own with mount attributes."""
    parsed = parse_options(tuple(options))
    context = syscalls.fsopen(kind)
    try:
        syscalls.fsconfig(context, "source", source)
        for option in parsed.data:
            key, separator, value = option.partition("=")
            if kind == "cgroup" and key == "name":
                syscalls.fsconfig(context, "none")
            syscalls.fsconfig(context, key, value if separator else None)
        mount = syscalls.fsmount(context)
    finally:
        os.close(context)
    _apply_attributes(mount, parsed)
    return mount


class MakeDevice(NamedTuple):
    """A device node; where the kernel does not let us make one (user namespace), the host's is bound there.

    ``prepared`` is a detached mount of a node that the parent made for a user namespace.
    """

    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    bind: bool = False
    prepared: int = -1

    def describe(self) -> str:
        return f"device {self.path} {self.type} {self.major}:{self.minor}"

    def execute(self, root: Root) -> None:
        if self.bind or not self._make_node(root):
            self._bind(root)

    def _make_node(self, root: Root) -> bool:
        """False when the kernel does not let us."""
        parent, name = os.path.split(self.path)
        kind = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[self.type]
        device = 0 if self.type == "p" else os.makedev(self.major, self.minor)
        directory = root.make_directory(parent)
        umask = os.umask(0)
        try:
            os.mknod(name, kind | self.mode, device, dir_fd=directory)
        except FileExistsError:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_IFMT(info.st_mode) != kind or info.st_rdev != device:
                raise RuntimeFailure(f"{self.path} exists in the rootfs and is not the device asked for") from None
            self._settle(directory, name)
        except PermissionError:
            return False
        else:
            if (self.uid, self.gid) != (0, 0):
                self._settle(directory, name)
        finally:
            os.umask(umask)
            os.close(directory)
        return True

    def _settle(self, directory: int, name: str) -> None:
        """Owner and mode, in this order: a change of owner takes set-id bits away."""
        os.chown(name, self.uid, self.gid, dir_fd=directory, follow_symlinks=False)
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        node = syscalls.openat2(directory, name, os.O_PATH, resolve)
        try:
            os.chmod(f"/proc/self/fd/{node}", self.mode)
        finally:
            os.close(node)

    def _bind(self, root: Root) -> None:
        mount = self.prepared
        if mount < 0:
            mount = syscalls.open_tree(syscalls.AT_FDCWD, self.path, syscalls.OPEN_TREE_CLONE)
        if self.type in ("c", "u") and not is_device(mount, self.major, self.minor):
            raise RuntimeFailure(f"host device {self.path} is not {self.type} {self.major}:{self.minor}")
        syscalls.mount_setattr(mount, set_=syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC)
        _attach(mount, root.make_file(self.path), self.path)


class MakeSymlink(NamedTuple):
    """A symlink, unless something is there already."""

    path: str
    target: str

    def describe(self) -> str:
        return f"symlink {self.path} -> {self.target}"

    def execute(self, root: Root) -> None:
        parent, name = os.path.split(self.path)
        directory = root.make_directory(parent)
        try:
            os.symlink(self.target, name, dir_fd=directory)
        except FileExistsError:
            if name == "ptmx":
                os.unlink(name, dir_fd=directory)
                os.symlink(self.target, name, dir_fd=directory)
        finally:
            os.close(directory)


class MakeDirectory(NamedTuple):
    """A directory in the rootfs, for a working directory that the image lacks."""

    path: str

    def describe(self) -> str:
        return f"directory {self.path}"

    def execute(self, root: Root) -> None:
        try:
            os.close(root.make_directory(self.path))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):  # chdir reports it with the user's view
                raise


class MaskPaths(NamedTuple):
    """Hide files under /dev/null and directories under an empty read-only tmpfs; missing ones need no hiding."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return f"mask {' '.join(self.paths)}"

    def execute(self, root: Root) -> None:
        covers: dict[bool, int] = {}
        try:
            for path in self.paths:
                target = root.open_or_none(path)
                if target is not None:
                    _cover(root, target, path, covers)
        finally:
            for fd in covers.values():
                os.close(fd)


def _cover(root: Root, target: int, path: str, covers: dict[bool, int]) -> None:
    """Hide ``target``; ``covers`` keeps what hides directories (True) and files (False) for the next ones."""
    directory = is_directory(target)
    if directory and True not in covers:
        # The first use attaches the mount itself: kernels before 6.15 do not clone what is nowhere attached.
        covers[True] = _empty_directory()
        syscalls.move_mount(covers[True], target, path)
        os.close(target)
        return
    if not directory and False not in covers:
        covers[False] = _null_device(root)
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
    _attach(syscalls.open_tree(covers[directory], "", flags), target, path)


class ReadOnlyPath(NamedTuple):
    """A path and all below it, made read-only by a bind mount over itself; missing ones are left out."""

    path: str

    def describe(self) -> str:
        return f"read-only {self.path}"

    def execute(self, root: Root) -> None:
        target = root.open_or_none(self.path)
        if target is None:
            return
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
        mount = syscalls.open_tree(target, "", flags)
        syscalls.mount_setattr(mount, set_=syscalls.MOUNT_ATTR_RDONLY, recursive=True)
        _attach(mount, target, self.path)


class ReadOnlyMount(NamedTuple):
    """Set the read-only bit of the mount at ``path`` itself."""

    path: str

    def describe(self) -> str:
        return f"remount {self.path} read-only"

    def execute(self, root: Root) -> None:
        fd = root.open(self.path)
        try:
            syscalls.mount_setattr(fd, set_=syscalls.MOUNT_ATTR_RDONLY)
        finally:
            os.close(fd)


def _ordinary_directory(root: Root, path: str, kind: str) -> int:
    try:
        target = root.open(path, os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        return root.make_directory(path)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RuntimeFailure(f'filesystem "{kind}" must be mounted on an ordinary directory: {path}') from error
    if not is_directory(target):
        raise RuntimeFailure(f'filesystem "{kind}" must be mounted on an ordinary directory: {path}')
    return target


def _refuse_in_proc(target: int, source: int, destination: str) -> None:
    if syscalls.filesystem_type(target) != syscalls.PROC_SUPER_MAGIC:
        return
    normal = os.path.normpath("/" + destination.lstrip("/"))
    if normal in _ALLOWED_IN_PROC or (
        normal == "/proc" and syscalls.filesystem_type(source) == syscalls.PROC_SUPER_MAGIC
    ):
        return
    raise RuntimeFailure(f'"{destination}" cannot be mounted because it is inside /proc')


def _empty_directory() -> int:
    context = syscalls.fsopen("tmpfs")
    try:
        for key, value in (("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "755")):
            syscalls.fsconfig(context, key, value)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def _null_device(root: Root) -> int:
    """The container's /dev/null, or the host's when that is not the null device: it could have been swapped."""
    own = root.open_or_none("/dev/null")
    if own is not None:
        if is_device(own, 1, 3):
            return own
        os.close(own)
    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    if not is_device(null, 1, 3):
        os.close(null)
        raise RuntimeFailure("/dev/null of the host is not the null device")
    return null


def _copy_tree(source: int, mount: int) -> None:
    """Copy what ``source`` holds into the top of ``mount`` (option ``tmpcopyup``); closes ``source``."""
    target = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _copy_entries(source, target)
    finally:
        os.close(source)
        os.close(target)


def _copy_entries(source: int, target: int) -> None:
    for name in os.listdir(source):
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner, copy = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            _copy_entries(inner, copy)
            os.close(inner)
            os.close(copy)
        elif stat.S_ISREG(info.st_mode):
            _copy_file(name, source, target)
        else:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)


def _copy_file(name: str, source: int, target: int) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
    while data := os.read(reader, 1 << 20):
        view = memoryview(data)
        while view:
            view = view[os.write(writer, view) :]
    os.close(reader)
    os.close(writer)
