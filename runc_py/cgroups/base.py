"""What every cgroup manager is: one container's directories in the host's cgroup tree.

Rule: a manager never decides policy. It makes, limits, signals and removes exactly the cgroups in ``paths``, and its
errors name the file, the value and the kernel's reason.

Life cycle: ``create`` → ``apply(pid)`` or, from inside the process itself, ``enter`` → ``set`` … → ``destroy``.
``save`` gives what ``runc_py.cgroups.load`` needs to rebuild the manager in another process.
"""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod

from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, NamedTuple, os, read_file

if TYPE_CHECKING:
    from typing import Any

ATTACH_ATTEMPTS = 5
"""A task that is just being forked is refused with EINVAL for an instant (it is TASK_NEW): runc tries five times."""

DESTROY_SECONDS = 2.0
"""How long ``destroy`` waits for the last dead task of a cgroup to be reaped."""


class CgroupError(RuntimeFailure):
    """A cgroup could not be made, limited, frozen or removed."""


class CgroupMount(NamedTuple):
    """One mount below a container's cgroup mount point.

    ``name`` is relative to that mount point ("" is the mount point itself). ``type`` is ``tmpfs``, ``bind`` (``source``
    is a host directory), ``cgroup`` (v1; ``options`` are the controllers) or ``cgroup2``.
    """

    name: str
    type: str
    source: str
    options: tuple[str, ...]


class ContainerMounts(NamedTuple):
    """How to show a container its own cgroups: mounts in order, then symlinks (name, target) in the mount point.

    For v1 the first mount is a tmpfs that is to be made read-only after the symlinks when the spec's mount says ``ro``;
    the mounts below it carry the flags of the spec's mount.
    """

    mounts: tuple[CgroupMount, ...]
    symlinks: tuple[tuple[str, str], ...]


class CgroupManager(ABC):
    """The cgroups of one container."""

    kind: str = ""
    """``v1``, ``v2``, ``systemd-v1``, ``systemd-v2`` or ``disabled``: the discriminator in saved state."""

    paths: dict[str, str]
    """Controller → absolute directory on the host; v2 has the single key ``""``. Empty when disabled."""

    @abstractmethod
    def create(self) -> None:
        """Make the directories. Existing ones are used, unless processes are in them (CgroupError)."""

    @abstractmethod
    def apply(self, pid: int) -> None:
        """Move the process ``pid`` into every cgroup."""

    def create_missing(self) -> None:  # noqa: B027 -- only what systemd made can lack something
        """Make what somebody else, who made the rest, has not made."""

    def enter(self) -> None:
        """Move the calling process, which must be single-threaded.

        On v1 this is much cheaper than ``apply``: writing ``0`` to ``tasks`` does not wait for an RCU grace period.
        """
        self.apply(os.getpid())

    @abstractmethod
    def set(self, resources: dict[str, Any]) -> None:
        """Write the limits of an OCI ``linux.resources`` object; absent fields are left alone."""

    @abstractmethod
    def pids(self, recursive: bool = True) -> list[int]:
        """Processes in the container's cgroup, and with ``recursive`` in the cgroups below it."""

    @abstractmethod
    def freeze(self) -> None:
        """Stop every process; returns when all of them have stopped."""

    @abstractmethod
    def thaw(self) -> None:
        """Let them run again."""

    def thaw_if_there(self) -> None:
        """The same after a signal: systemd removes a scope as soon as its last process has gone."""
        try:
            self.thaw()
        except (CgroupError, OSError) as error:
            # The files of a cgroup go before its directory does.
            cause = error if isinstance(error, OSError) else error.__cause__
            gone = isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.ENODEV)
            if not gone and any(os.path.isdir(path) for path in self.paths.values()):
                raise

    @abstractmethod
    def frozen(self) -> bool:
        """Whether the cgroup is frozen or freezing."""

    @abstractmethod
    def kill_all(self, sig: int) -> None:
        """Signal every process, none escaping by forking. SIGKILL also thaws a frozen container."""

    @abstractmethod
    def destroy(self) -> None:
        """Remove the directories and what the container made below them. Idempotent; waits shortly for dying tasks."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Usage in the shape of ``runc events --stats`` (its ``data`` object): cpu in ns, memory in bytes."""

    @abstractmethod
    def container_mounts(self, *, cgroup_namespace: bool) -> ContainerMounts:
        """What the spec's mount of type ``cgroup`` means for this container."""

    def oom_kills(self) -> int:
        """How many processes of this cgroup the kernel has killed for want of memory."""
        return 0

    def descriptor(self) -> int | None:
        """An open descriptor of the cgroup for ``clone3(CLONE_INTO_CGROUP)``; None where that is not possible (v1).

        The caller closes it.
        """
        return None

    def below(self, group: str) -> CgroupManager:
        """The manager of an existing sub-cgroup (``path`` or, on v1, ``controller[,controller]:path``), for an exec.

        With a mere path, hierarchies of v1 that do not have it stay at the container's own, as long as one has it.
        """
        controllers, separator, name = group.rpartition(":")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise CgroupError(f'exec: the sub-cgroup "{group}": `..` components are not allowed')
        wanted = controllers.split(",") if separator else list(self.paths)
        unknown = [one for one in wanted if one not in self.paths]
        if unknown:
            raise CgroupError(f'exec: the container has no cgroup of controller "{unknown[0]}"')
        inner = {one: "/".join([self.paths[one], *parts]) for one in wanted}
        there = {one: path for one, path in inner.items() if os.path.isdir(path)}
        if missing := [path for one, path in inner.items() if one not in there and (separator or not there)]:
            raise CgroupError(f"exec: cgroup {missing[0]} does not exist")
        paths = {**self.paths, **there}
        from runc_py.cgroups import load

        return load({"kind": self.kind.removeprefix("systemd-"), "paths": paths})

    def save(self) -> dict[str, Any]:
        """JSON-able state for ``load``."""
        return {"kind": self.kind, "paths": self.paths}


def in_user_namespace() -> bool:
    """Whether root here is not the host's root: the kernel then refuses device rules, and needs none."""
    try:
        return read_file("/proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]
    except FileNotFoundError:
        return False


def read(path: str) -> str:
    """The text of a cgroup file, without surrounding white space. Raises OSError."""
    return read_file(path).decode("utf-8", "replace").strip()


def write(path: str, *values: str | int) -> None:
    """Write values, one after the other, to one cgroup file; CgroupError names file, value and cause."""
    text = str(values[0])
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for value in values:
                text = str(value)
                os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise write_error(path, text, error) from error


def write_error(path: str, value: str, error: OSError) -> CgroupError:
    """The error of a refused write, with the usual reason where the kernel's number alone misleads."""
    directory, name = os.path.split(path)
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM) and not os.path.exists(path):
        if os.path.isdir(directory):
            reason = "this kernel or this cgroup does not offer the file"
        else:
            reason = "the cgroup does not exist"
    elif error.errno == errno.EBUSY and name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max"):
        reason = "device or resource busy: more memory is in use than the new limit"
    return CgroupError(f'cgroup: cannot write "{value}" to {path}: {reason}')


def attach(path: str, pid: int) -> None:
    """Write ``pid`` to a ``cgroup.procs`` file, trying again while the process is only being born."""
    for attempt in range(ATTACH_ATTEMPTS):
        try:
            write(path, pid)
            return
        except CgroupError as error:
            cause = error.__cause__
            transient = isinstance(cause, OSError) and cause.errno == errno.EINVAL
            if not transient or attempt == ATTACH_ATTEMPTS - 1:
                raise
            time.sleep(0.02)


def make_directory(path: str) -> bool:
    """Make a cgroup and its missing parents; False when it was there before."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)
    except OSError as error:
        raise CgroupError(f"cgroup: cannot make {path}: {os.strerror(error.errno or 0)}") from error
    return True


def descendants(path: str) -> list[str]:
    """Directories below ``path``, deepest first. A directory that vanishes meanwhile is left out."""
    found: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found += descendants(entry.path)
                    found.append(entry.path)
    except FileNotFoundError:
        pass
    return found


def read_pids(path: str) -> list[int]:
    """The processes of one cgroup directory; none when it is gone. Tasks of other pid namespaces (0) are left out."""
    try:
        text = read(f"{path}/cgroup.procs")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise CgroupError(f"cgroup: cannot read {path}/cgroup.procs: {os.strerror(error.errno or 0)}") from error
    return [int(line) for line in text.split() if line != "0"]


def all_pids(path: str, recursive: bool) -> list[int]:
    """The processes in ``path`` and, when asked, below it, each once, in order of number."""
    pids = set(read_pids(path))
    if recursive:
        for child in descendants(path):
            pids.update(read_pids(child))
    return sorted(pids)


def signal_all(pids: list[int], sig: int) -> None:
    """Signal processes; those already gone do not matter."""
    for pid in pids:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            continue


def remove_tree(path: str, deadline: float) -> None:
    """Remove a cgroup and all below it, trying again until ``deadline`` (monotonic) while dead tasks linger."""
    delay = 0.0005
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                raise CgroupError(f"cgroup: cannot remove {path}: {_busy_reason(path, error)}") from error
        for child in descendants(path):
            try:
                os.rmdir(child)
            except OSError:
                continue  # the loop comes back until the deadline and then names the cause
        time.sleep(delay)
        delay = min(delay * 2, 0.05)


def _busy_reason(path: str, error: OSError) -> str:
    pids = all_pids(path, recursive=True) if error.errno == errno.EBUSY else []
    if pids:
        return f"processes are still in it: {', '.join(map(str, pids[:10]))}"
    return os.strerror(error.errno or 0)
