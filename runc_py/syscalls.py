"""Every system call that Python's ``os`` module does not offer, declared once.

Rule: ``ctypes``, in its light form, is used here and nowhere else in the runtime (cgroups' and seccomp's own calls
apart). Each wrapper raises ``OSError`` with the errno and the path or name it was about. ``PyDLL`` keeps the GIL in
calls: the runtime is single-threaded, and a raw ``clone3`` must return in the child with the interpreter in a
consistent state.
"""

from __future__ import annotations

import sys

from runc_py import foreign as ctypes
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from typing import Any

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

OPEN_TREE_CLONE = 1
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
DEVPTS_SUPER_MAGIC = 0x1CD1
TMPFS_MAGIC = 0x01021994
CGROUP2_SUPER_MAGIC = 0x63677270

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLOSE_RANGE_CLOEXEC = 4
KEYCTL_JOIN_SESSION_KEYRING = 1

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_MADV_POPULATE_WRITE = 23
_O_CLOEXEC = os.O_CLOEXEC
_CAPABILITY_VERSION_3 = 0x20080522

# Calls since Linux 5.1 have one number on every architecture; the two older ones that glibc does not wrap differ.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_CLONE3, _CLOSE_RANGE, _OPENAT2, _PIDFD_GETFD, _MOUNT_SETATTR = 435, 436, 437, 438, 442
_PIVOT_ROOT_BY_MACHINE = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217, "armv7l": 218}
_KEYCTL_BY_MACHINE = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280, "armv7l": 311}
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345, "armv7l": 380}
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282, "armv7l": 314}
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237, "ppc64le": 261, "s390x": 269, "armv7l": 321}

_libc = ctypes.PyDLL(None, use_errno=True)
# Arguments are passed in whole registers, of which the callee takes what it declares: one type does for all integers,
# and each further type of ctypes costs a cold command as much as ten calls.
_int = _uint = _long = _ulong = _size = ctypes.c_long
_text, _pointer = ctypes.c_char_p, ctypes.c_void_p
_words = _text
"""A structure that the kernel only reads, packed by ``_packed``."""


def _function(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Any:
    function = _libc[name]  # indexing makes a new function object: each use of syscall() has its own argtypes
    function.argtypes = argtypes
    function.restype = restype
    return function


_mount = _function("mount", _text, _text, _text, _ulong, _text)
_umount2 = _function("umount2", _text, _int)
_setns = _function("setns", _int, _int)
_unshare = _function("unshare", _int)
_prctl = _function("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_prctl_name = _function("prctl", _int, _text, _ulong, _ulong, _ulong)
_sethostname = _function("sethostname", _text, _size)
_setdomainname = _function("setdomainname", _text, _size)
_personality = _function("personality", _ulong)
_capset = _function("capset", _words, _words)
_fstatfs = _function("fstatfs", _int, _pointer)
_pivot_root = _function("syscall", _long, _text, _text, restype=_long)
_keyctl_text = _function("syscall", _long, _int, _text, restype=_long)
_open_tree = _function("syscall", _long, _int, _text, _uint, restype=_long)
_move_mount = _function("syscall", _long, _int, _text, _int, _text, _uint, restype=_long)
_fsopen = _function("syscall", _long, _text, _uint, restype=_long)
_fsconfig = _function("syscall", _long, _int, _uint, _text, _text, _int, restype=_long)
_fsmount = _function("syscall", _long, _int, _uint, _uint, restype=_long)
_mount_setattr = _function("syscall", _long, _int, _text, _uint, _words, _size, restype=_long)
_openat2 = _function("syscall", _long, _int, _text, _words, _size, restype=_long)
_clone3 = _function("syscall", _long, _words, _size, restype=_long)
_close_range = _function("syscall", _long, _uint, _uint, _uint, restype=_long)
_pidfd_getfd = _function("syscall", _long, _int, _int, _uint, restype=_long)
_sched_setattr = _function("syscall", _long, _int, _words, _uint, restype=_long)
_ioprio_set = _function("syscall", _long, _int, _int, _int, restype=_long)
_set_mempolicy = _function("syscall", _long, _int, _words, _ulong, restype=_long)
_mmap = _function("mmap", _pointer, _size, _int, _int, _int, _long, restype=_long)
_mprotect = _function("mprotect", _pointer, _size, _int)
_mremap = _function("mremap", _pointer, _size, _size, _int, _pointer, restype=_long)
_memmove = _function("memmove", _pointer, _pointer, _size, restype=_pointer)
_madvise = _function("madvise", _pointer, _size, _int)
_sbrk = _function("sbrk", _long, restype=_long)
_ioctl = _function("ioctl", _int, _ulong, _words)
_fcntl = _function("fcntl", _int, _int, _long)
_prlimit = _function("prlimit64", _int, _int, _words, _pointer)
_prctl_map = _function("prctl", _int, _ulong, _words, _ulong, _ulong)


def _packed(*values: int, size: int = 8) -> bytes:
    """Numbers of ``size`` bytes each, one after the other, as C lays them out; negative ones are two's complements."""
    every = (1 << size * 8) - 1
    return b"".join([(value & every).to_bytes(size, sys.byteorder) for value in values])


def _failed(subject: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), subject)


def _path(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def clone(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """Fork with ``CLONE_*`` flags; ``(pid, pidfd)`` in the parent, ``(0, -1)`` in the child.

    ``cgroup`` is a descriptor of the v2 cgroup that the child starts in.

    Python's fork hooks do not run: the child may only prepare itself and then ``execve`` or ``os._exit``.
    """
    pidfd = ctypes.c_int(-1)
    # The kernel takes the signal of the calling process for a sibling and refuses another.
    end = 0 if flags & CLONE_PARENT else 17
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup is not None else 0)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack and its size, tls, set_tid and its size
    arguments = _packed(flags, ctypes.addressof(pidfd), 0, 0, end, 0, 0, 0, 0, 0, cgroup or 0)
    pid = _clone3(_CLONE3, arguments, len(arguments))
    if pid < 0:
        raise _failed("clone3")
    return int(pid), pidfd.value if pid else -1


def setns(fd: int, kind: int, subject: str = "setns") -> None:
    """Join the namespace ``fd``; a pidfd joins all namespaces of ``kind``'s bits at once."""
    if _setns(fd, kind) < 0:
        raise _failed(subject)


def unshare(flags: int) -> None:
    """Leave the namespaces of ``flags`` for new ones."""
    if _unshare(flags) < 0:
        raise _failed("unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2), for host paths only: paths inside a rootfs go through descriptors."""
    if _mount(_path(source), _path(target), _path(kind), flags, _path(data)) < 0:
        raise _failed(target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    if _umount2(_path(target), flags) < 0:
        raise _failed(target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    if _pivot_root(_PIVOT_ROOT_BY_MACHINE[os.uname().machine], _path(new), _path(old)) < 0:
        raise _failed("pivot_root")


def open_tree(fd: int, path: str, flags: int) -> int:
    """A mount object for ``path``: with ``OPEN_TREE_CLONE`` a detached bind mount of it."""
    result = _open_tree(_OPEN_TREE, fd, _path(path), flags | _O_CLOEXEC)
    if result < 0:
        raise _failed(path)
    return int(result)


def move_mount(mount_fd: int, target_fd: int, subject: str = "move_mount") -> None:
    """Attach the detached mount ``mount_fd`` on the file or directory ``target_fd``."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _move_mount(_MOVE_MOUNT, mount_fd, b"", target_fd, b"", flags) < 0:
        raise _failed(subject)


def fsopen(kind: str) -> int:
    """A configuration descriptor for a new superblock of filesystem ``kind``."""
    result = _fsopen(_FSOPEN, _path(kind), 1)
    if result < 0:
        raise _failed(kind)
    return int(result)


def fsconfig(fd: int, key: str, value: str | None = None) -> None:
    """Set a string option, or a flag when ``value`` is None."""
    command = 0 if value is None else 1
    if _fsconfig(_FSCONFIG, fd, command, _path(key), _path(value), 0) < 0:
        raise _failed(key if value is None else f"{key}={value}")


def fsmount(fd: int, attributes: int = 0) -> int:
    """Create the superblock that ``fd`` describes and return a detached mount of it."""
    if _fsconfig(_FSCONFIG, fd, 6, None, None, 0) < 0:
        raise _failed("fsconfig create")
    result = _fsmount(_FSMOUNT, fd, 1, attributes)
    if result < 0:
        raise _failed("fsmount")
    return int(result)


def mount_setattr(
    fd: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """Change attributes of the mount ``fd``."""
    attributes = _packed(set_, clear, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _mount_setattr(_MOUNT_SETATTR, fd, b"", flags, attributes, len(attributes)) < 0:
        raise _failed("mount_setattr")


_hows: dict[tuple[int, int, int], bytes] = {}
"""``struct open_how`` by flags, mode and resolution: the same few again and again."""


def openat2(fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); retries the EAGAIN that a rename race elsewhere on the system can cause."""
    how = _hows.get((flags, mode, resolve))
    if how is None:
        how = _hows[flags, mode, resolve] = _packed(flags | _O_CLOEXEC, mode, resolve)
    for _ in range(64):
        result = _openat2(_OPENAT2, fd, _path(path), how, len(how))
        if result >= 0:
            return int(result)
        if ctypes.get_errno() != 11:
            break
    raise _failed(path)


def close_range(first: int, last: int = 0x7FFFFFFF, flags: int = 0) -> None:
    """close_range(2)."""
    if _close_range(_CLOSE_RANGE, first, last, flags) < 0:
        raise _failed("close_range")


def prctl(option: int, argument: int = 0, second: int = 0) -> int:
    """prctl(2) with integer arguments."""
    result = _prctl(option, argument, second, 0, 0)
    if result < 0:
        raise _failed(f"prctl {option}")
    return int(result)


def set_process_name(name: str) -> None:
    """What ``ps`` shows until the process executes its program."""
    _prctl_name(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def sethostname(name: str) -> None:
    """sethostname(2)."""
    encoded = name.encode()
    if _sethostname(encoded, len(encoded)) < 0:
        raise _failed(f"hostname {name}")


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    encoded = name.encode()
    if _setdomainname(encoded, len(encoded)) < 0:
        raise _failed(f"domainname {name}")


def personality(persona: int) -> None:
    """personality(2)."""
    if _personality(persona) < 0:
        raise _failed("personality")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capability masks of this process."""
    words = (effective, permitted, inheritable, effective >> 32, permitted >> 32, inheritable >> 32)
    if _capset(_packed(_CAPABILITY_VERSION_3, 0, size=4), _packed(*words, size=4)) < 0:
        raise _failed("capset")


def sched_setattr(policy: int, flags: int, nice: int, priority: int, times: tuple[int, int, int]) -> None:
    """Scheduling of this process; ``times`` are runtime, deadline and period in nanoseconds (sched_setattr(2))."""
    # struct sched_attr in its second version: the utilization clamps at the end are left 0
    tail = _packed(flags) + _packed(nice, priority, size=4) + _packed(*times) + _packed(0, 0, size=4)
    attributes = _packed(len(tail) + 8, policy, size=4) + tail
    if _sched_setattr(_number(_SCHED_SETATTR, "sched_setattr"), 0, attributes, 0) < 0:
        raise _failed("sched_setattr")


def ioprio_set(which: int, who: int, priority: int) -> None:
    """ioprio_set(2)."""
    if _ioprio_set(_number(_IOPRIO_SET, "ioprio_set"), which, who, priority) < 0:
        raise _failed("ioprio_set")


def set_mempolicy(mode: int, nodes: int) -> None:
    """NUMA policy of this process and what it executes; ``nodes`` is a bit mask (set_mempolicy(2))."""
    words = max(1, (nodes.bit_length() + 63) // 64)
    mask = nodes.to_bytes(words * 8, "little") if nodes else None
    # The kernel takes one bit less than it is told (get_nodes in mm/mempolicy.c).
    if _set_mempolicy(_number(_SET_MEMPOLICY, "set_mempolicy"), mode, mask, words * 64 + 1 if nodes else 0) < 0:
        raise _failed("set_mempolicy")


def make_anonymous(start: int, length: int, protection: int) -> None:
    """Replace a mapping of this process by anonymous memory that holds the same; nobody may write to it meanwhile."""
    copy = _mmap(None, length, 3, 0x22, -1, 0)  # PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
    if copy == -1:
        raise _failed("mmap")
    _memmove(copy, start, length)
    if _mprotect(copy, length, protection) < 0:
        raise _failed("mprotect")
    if _mremap(copy, length, length, 3, start) == -1:  # MREMAP_MAYMOVE | MREMAP_FIXED: in one step
        raise _failed("mremap")


def populate(start: int, length: int) -> bool:
    """Give this process its own copy of memory that it shares with the one it was forked from, whole pages.

    It is then nobody's to wait for when the pages are written to. False where there is no such memory, and before Linux
    5.14.
    """
    return bool(_madvise(start, length, _MADV_POPULATE_WRITE) == 0)


def overwrite(address: int, data: bytes) -> None:
    """Put ``data`` into this process's own memory."""
    _memmove(address, data, len(data))


def set_executable(fd: int, fields: list[int]) -> None:
    """Make the file ``fd`` this process's ``/proc/self/exe``; ``fields`` is its ``stat`` (PR_SET_MM_MAP, prctl(2)).

    The kernel refuses while anything of the old file is mapped. Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
    """
    start_code, end_code, stack = fields[25:28]
    start_data, end_data, heap, *strings = fields[44:51]
    file = fd << 32 if sys.byteorder == "little" else fd  # beside the length of an auxiliary vector: none
    before, after = _packed(start_code, end_code, start_data, end_data, heap), _packed(stack, *strings, 0, file)
    data = before + _packed(_sbrk(0)) + after  # the end of the heap as it is now: last
    if _prctl_map(_PR_SET_MM, _PR_SET_MM_MAP, data, len(data), 0) < 0:
        raise _failed("/proc/self/exe")


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy of descriptor ``number`` of another process (Linux 5.6)."""
    result = _pidfd_getfd(_PIDFD_GETFD, pidfd, number, 0)
    if result < 0:
        raise _failed("pidfd_getfd")
    return int(result)


def ioctl(fd: int, request: int, argument: bytes) -> None:
    """An ioctl(2) that only reads what it is given."""
    if _ioctl(fd, request, argument) < 0:
        raise _failed(f"ioctl {request:#x}")


def fcntl(fd: int, command: int, argument: int = 0) -> int:
    """fcntl(2) with a number."""
    result = _fcntl(fd, command, argument)
    if result < 0:
        raise _failed(f"fcntl {command}")
    return int(result)


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """Limits of this process, of 64 bits each: the largest number means none (prlimit(2))."""
    if _prlimit(0, resource, _packed(soft, hard), None) < 0:
        raise _failed(f"limit {resource}")


def getrlimit(resource: int) -> tuple[int, int]:
    """(soft, hard) limit of this process."""
    buffer = ctypes.create_string_buffer(16)
    if _prlimit(0, resource, None, buffer) < 0:
        raise _failed(f"limit {resource}")
    soft, hard = (int.from_bytes(buffer.raw[at : at + 8], sys.byteorder) for at in (0, 8))
    return soft, hard


def _number(by_machine: dict[str, int], name: str) -> int:
    number = by_machine.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"the number of this system call on {os.uname().machine} is not known", name)
    return number


def filesystem_type(fd: int) -> int:
    """The magic number of the filesystem that ``fd`` is on (statfs ``f_type``)."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer) < 0:
        raise _failed("fstatfs")
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFFFFFF


def join_session_keyring(name: str) -> None:
    """A session keyring of its own for the container; kernels without keyrings have nothing to leak."""
    number = _KEYCTL_BY_MACHINE.get(os.uname().machine)
    if number is not None and _keyctl_text(number, KEYCTL_JOIN_SESSION_KEYRING, name.encode()) < 0:
        error = _failed(f"session keyring {name}")
        if error.errno not in (38, 1, 122, 13):  # ENOSYS, and EPERM, EDQUOT, EACCES under an outer sandbox
            raise error
