"""What every child of the runtime does first, and the seccomp and label steps that init and exec share.

Rule: from its first line to ``execve`` a child is a piece of the host inside a container. It cannot be looked into
(dumpable 0), holds only the descriptors it needs, and can import nothing any more (CVE-2016-9962, CVE-2024-21626).
"""

from __future__ import annotations

import gc
import sys

from runc_py import capabilities, messages, process, syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, Socket, os, suppress

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    class Tuning(Protocol):
        """Something a process applies to itself (see ``scheduling``)."""

        def apply(self) -> None:
            """Do it. Raises RuntimeFailure."""


def detach(
    name: str, stdio: tuple[int, int, int] | None, keep: Iterable[int], preserve_fds: int, *, visible: bool = False
) -> None:
    """Cut the child off from the process it was cloned from.

    ``visible`` leaves its ``/proc`` files to its user until it becomes root of its namespace.
    """
    if not visible:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.set_process_name(name)
    os.umask(0o022)
    gc.disable()
    sys.path.clear()
    sys.meta_path.clear()
    process.reset_signals()
    if stdio is not None:
        process.use_stdio(stdio)
    first = 3 + preserve_fds
    for fd in sorted(set(keep)):
        if fd >= first:
            if fd > first:
                syscalls.close_range(first, fd - 1)
            first = fd + 1
    syscalls.close_range(first)


def become_root_of_namespace() -> None:
    """User and group 0 of the user namespace this process is in now."""
    with suppress(PermissionError):  # an unprivileged mapping denies setgroups; they stay, unmapped
        os.setgroups([])
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        raise RuntimeFailure(f"user namespace has no id 0: {error.strerror}") from error
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def open_procfs() -> int:
    """A procfs of this pid namespace that is attached nowhere: whatever the rootfs holds, this one is real."""
    context = syscalls.fsopen("proc")
    try:
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def write_proc(procfs: int, path: str, value: str) -> None:
    """Write to a file below a detached procfs."""
    _write_and_close(_open_proc(procfs, path), value)


def _open_proc(procfs: int, path: str) -> int:
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS
    return syscalls.openat2(procfs, path, os.O_WRONLY, resolve)


def _write_and_close(fd: int, value: str) -> None:
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def set_labels(spec_process: dict[str, Any]) -> None:
    """AppArmor profile and SELinux label for the program to be executed."""
    wanted: list[tuple[str, tuple[str, ...], str]] = []
    if profile := spec_process.get("apparmorProfile"):
        wanted.append(("apparmorProfile", ("self/attr/apparmor/exec", "self/attr/exec"), f"exec {profile}"))
    if label := spec_process.get("selinuxLabel"):
        wanted.append(("selinuxLabel", ("self/attr/exec",), label))
    if not wanted:
        return
    procfs = open_procfs()
    try:
        for name, paths, value in wanted:
            _write_first(procfs, name, paths, value)
    finally:
        os.close(procfs)


def _write_first(procfs: int, name: str, paths: tuple[str, ...], value: str) -> None:
    for path in paths:
        try:
            fd = _open_proc(procfs, path)
        except FileNotFoundError:
            continue
        try:
            _write_and_close(fd, value)
        except FileNotFoundError as error:
            raise RuntimeFailure(f"process.{name}: {value}: no such profile is loaded") from error
        except OSError as error:
            raise RuntimeFailure(f"process.{name}: {value}: {error.strerror}") from error
        return
    raise RuntimeFailure(f"process.{name}: this kernel has no such security module enabled")


class SeccompFilter:
    """A compiled profile: the BPF program and the flags of seccomp(2).

    It holds the function that installs it, because the child can import nothing. ``listener`` is the path of the
    agent's socket, when calls are to be decided by an agent.
    """

    __slots__ = ("_install", "flags", "installed", "listener", "metadata", "program")

    def __init__(self, program: bytes, flags: int, listener: str = "", metadata: str = "") -> None:
        from runc_py import seccomp

        self.program = program
        self.flags = flags
        self.listener = listener
        self.metadata = metadata
        self.installed = False
        self._install = seccomp.install

    def install(self) -> int | None:
        """Filter this process's system calls from now on; the notification descriptor when there is an agent."""
        if self.installed:
            return None
        self.installed = True
        return self._install(self.program, self.flags, listener=bool(self.listener))

    def record(self) -> dict[str, Any]:
        """What the container's record keeps beside the program."""
        return {"flags": self.flags, "listener": self.listener, "metadata": self.metadata}


def install_with_agent(
    filter_: SeccompFilter, sets: capabilities.CapabilitySets, privileges: int, channel: Socket
) -> None:
    """Install a filter that asks an agent, and wait until the parent has given the agent its descriptor.

    Until then only write(2) may be used: it is the one call that a profile cannot ask the agent about.
    """
    if privileges:
        syscalls.capset(sets.effective | privileges, sets.permitted | privileges, sets.inheritable)
    fd = filter_.install()
    assert fd is not None
    os.write(channel.fileno(), messages.Kind.LISTENER + b"%d" % fd)
    if messages.receive(channel).kind != messages.Kind.GO:
        os._exit(1)
    os.close(fd)


def privileges_needed(filter_: SeccompFilter | None, no_new_privileges: bool) -> int:
    """Capabilities to keep permitted until the filter is installed (seccomp(2): CAP_SYS_ADMIN or no_new_privs)."""
    return capabilities.SYS_ADMIN if filter_ is not None and not no_new_privileges else 0


def lock_down(filter_: SeccompFilter | None, sets: capabilities.CapabilitySets, privileges: int) -> None:
    """The last steps before ``execve``: the filter, and the capabilities exactly as the spec has them.

    The filter comes as late as it can, so that profiles need not allow what the runtime itself does.
    """
    if filter_ is not None and privileges:
        syscalls.capset(sets.effective | privileges, sets.permitted | privileges, sets.inheritable)
        filter_.install()
        capabilities.finish(sets)
        return
    capabilities.finish(sets)
    if filter_ is not None:
        filter_.install()


def try_directory(cwd: str) -> bool:
    """Enter ``cwd`` while still root; False when only the user may (a FUSE or NFS home): then try again as the user."""
    try:
        process.enter_directory(cwd)
    except RuntimeFailure as error:
        if isinstance(error.__cause__, PermissionError):
            return False
        raise
    return True
