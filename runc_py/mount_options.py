"""Mount options of a spec as what the kernel's mount API takes.

Rule: every option that is not in these tables is the filesystem's own (``size=65536k``, ``gid=5``) and goes to
``fsconfig``. Sources: runtime-spec ``config.md#linux-mount-options``, mount_setattr(2).
"""

from __future__ import annotations

from runc_py import syscalls
from runc_py.light import NamedTuple

_RDONLY = syscalls.MOUNT_ATTR_RDONLY
_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (_RDONLY, 0),
    "rw": (0, _RDONLY),
    "nosuid": (syscalls.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, syscalls.MOUNT_ATTR_NOSUID),
    "nodev": (syscalls.MOUNT_ATTR_NODEV, 0),
    "dev": (0, syscalls.MOUNT_ATTR_NODEV),
    "noexec": (syscalls.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, syscalls.MOUNT_ATTR_NOEXEC),
    "nodiratime": (syscalls.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, syscalls.MOUNT_ATTR_NODIRATIME),
    "relatime": (0, syscalls.MOUNT_ATTR_ATIME),
    "noatime": (syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR_ATIME),
    "strictatime": (syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MOUNT_ATTR_ATIME),
    "atime": (0, syscalls.MOUNT_ATTR_ATIME),
    "norelatime": (0, syscalls.MOUNT_ATTR_ATIME),
    "nostrictatime": (0, syscalls.MOUNT_ATTR_ATIME),
    "nosymfollow": (syscalls.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, syscalls.MOUNT_ATTR_NOSYMFOLLOW),
}
"""Option → bits to set, bits to clear. The same names with an ``r`` in front apply to the whole tree."""

_PROPAGATION = {
    "private": (syscalls.MS_PRIVATE, False),
    "rprivate": (syscalls.MS_PRIVATE, True),
    "slave": (syscalls.MS_SLAVE, False),
    "rslave": (syscalls.MS_SLAVE, True),
    "shared": (syscalls.MS_SHARED, False),
    "rshared": (syscalls.MS_SHARED, True),
    "unbindable": (syscalls.MS_UNBINDABLE, False),
    "runbindable": (syscalls.MS_UNBINDABLE, True),
}
_SAME = _RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
"""Attributes whose bits are those of mount(2). What is not set there is off, and access times are relative."""

_CLASSIC = (
    (syscalls.MOUNT_ATTR_NOATIME, syscalls.MS_NOATIME),
    (syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MS_STRICTATIME),
    (syscalls.MOUNT_ATTR_NODIRATIME, syscalls.MS_NODIRATIME),
    (syscalls.MOUNT_ATTR_NOSYMFOLLOW, syscalls.MS_NOSYMFOLLOW),
)

_WORDS = frozenset({"bind", "rbind", "tmpcopyup", "idmap", "ridmap", "src-nofollow", "dest-nofollow", "copy-symlink"})
_SUPERBLOCK = frozenset({"sync", "dirsync", "mand", "lazytime"})
_IGNORED = frozenset({"defaults", "async", "nomand", "nolazytime", "silent", "loud", "noiversion", "iversion"})
_MOUNT_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "sync": syscalls.MS_SYNCHRONOUS,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
}


class MountOptions(NamedTuple):
    """Parsed options: ``set``/``clear`` for the mount, ``set_all``/``clear_all`` for the tree below it too.

    ``idmap`` is "", "idmap" or "ridmap". The last three are crun's: a symlink as source or destination is mounted (on)
    itself, or, with ``copy_symlink``, a source that is one is made anew in the rootfs.
    """

    set: int
    clear: int
    set_all: int
    clear_all: int
    propagation: tuple[tuple[int, bool], ...]
    bind: bool
    recursive: bool
    superblock: tuple[str, ...]
    data: tuple[str, ...]
    copy_up: bool
    idmap: str
    source_nofollow: bool
    target_nofollow: bool
    copy_symlink: bool

    @property
    def read_only(self) -> bool:
        """Whether the mount ends up read-only."""
        return bool((self.set | self.set_all) & _RDONLY)

    @property
    def classic(self) -> int | None:
        """The flags of mount(2) that make a new mount with these attributes; None where they say more."""
        if self.set_all or self.clear_all or self.propagation or self.superblock:
            return None
        return self.set & _SAME | sum(flag for attribute, flag in _CLASSIC if self.set & attribute)


def parse_options(options: list[str] | tuple[str, ...]) -> MountOptions:
    """Sort ``options`` by who they are for; of contradicting ones the last wins."""
    own, tree = [0, 0], [0, 0]
    propagation: list[tuple[int, bool]] = []
    superblock: list[str] = []
    data: list[str] = []
    words: set[str] = set()
    for option in options:
        if option in _ATTRIBUTES:
            _merge(own, _ATTRIBUTES[option])
        elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
            _merge(tree, _ATTRIBUTES[option[1:]])
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option in _WORDS:
            words.add(option)
        elif option in _SUPERBLOCK:
            superblock.append(option)
        elif option and option not in _IGNORED:
            data.append(option)
    return MountOptions(
        *(own[0], own[1], tree[0], tree[1]),
        tuple(propagation),
        bool(words & {"bind", "rbind"}),
        "rbind" in words,
        tuple(superblock),
        tuple(data),
        "tmpcopyup" in words,
        "ridmap" if "ridmap" in words else "idmap" if "idmap" in words else "",
        "src-nofollow" in words,
        "dest-nofollow" in words,
        "copy-symlink" in words,
    )


def _merge(bits: list[int], change: tuple[int, int]) -> None:
    bits[0] = bits[0] & ~change[1] | change[0]
    bits[1] = bits[1] & ~change[0] | change[1]


def known_options() -> list[str]:
    """Every option that is not left to the filesystem."""
    words = _WORDS | _SUPERBLOCK | _IGNORED
    return sorted(words | _PROPAGATION.keys() | _ATTRIBUTES.keys() | {f"r{name}" for name in _ATTRIBUTES})


def classic_flags(options: tuple[str, ...]) -> tuple[int, str]:
    """``MS_*`` flags and the data string for mount(2): for the rootfs mounts of a snapshotter, which are host paths."""
    flags = 0
    data = []
    for option in options:
        if option in _MOUNT_FLAGS:
            flags |= _MOUNT_FLAGS[option]
        elif option not in ("rw", "") and option not in _IGNORED:
            data.append(option)
    return flags, ",".join(data)
