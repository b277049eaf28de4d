"""A container's first process, from ``clone`` to ``execve``.

Rule: read ``_set_up`` from top to bottom: that is the order, and the reasons for it. Everything it needs was prepared
by the parent in an ``InitTask``; what it finds out goes back as messages.
"""

from __future__ import annotations

import sys

from runc_py import capabilities, child, light, messages, process, rootfs, syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, NamedTuple, Socket, os
from runc_py.messages import Kind
from runc_py.operations import CgroupTree
from runc_py.paths import Root

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from runc_py.cgroups import CgroupManager
    from runc_py.namespaces import Namespaces
    from runc_py.operations import Operation
    from runc_py.reaper import Room
    from runc_py.runtime import RootfsMount, Stdio

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_IFREQ_BYTES = 40
REAPER_ANNOTATION = "dev.gantry.init"
"""The spec's annotation that asks for a process 1 of ours (see ``reaper``)."""


class CreateOptions(NamedTuple):
    """How a container is made, beside its spec (see ``Runtime.create``)."""

    stdio: Stdio | None
    layers: Sequence[RootfsMount]
    no_pivot: bool
    keyring: str | None
    preserve_fds: int
    console_size: tuple[int, int] | None
    notify_socket: str = ""


class InitTask(NamedTuple):
    """What a new init is to do. ``cgroup`` is None when the parent places it.

    ``rootless``: its parent is an ordinary user who writes its id maps, and needs to open its ``/proc`` files for that.
    ``early``: its parent makes its cgroups meanwhile; it enters them when it comes to showing them.
    """

    spec: dict[str, Any]
    namespaces: Namespaces
    plan: rootfs.RootfsPlan
    rootfs_path: str
    channel: Socket
    listener: Socket
    cgroup: CgroupManager | None
    seccomp: child.SeccompFilter | None
    options: CreateOptions
    state: dict[str, Any]
    prepared: Sequence[int] = ()
    tuning: Sequence[child.Tuning] = ()
    rootless: bool = False
    early: bool = False

    @property
    def process(self) -> dict[str, Any]:
        """The spec's process object."""
        found: dict[str, Any] = self.spec["process"]
        return found

    @property
    def linux(self) -> dict[str, Any]:
        """The spec's linux object."""
        found: dict[str, Any] = self.spec.get("linux") or {}
        return found

    @property
    def privileges(self) -> int:
        """Capabilities that stay permitted until the seccomp filter is installed."""
        return child.privileges_needed(self.seccomp, bool(self.process.get("noNewPrivileges")))

    @property
    def userns(self) -> bool:
        """Whether the container has a user namespace of its own."""
        return "user" in self.namespaces.kinds

    def annotated(self, name: str) -> bool:
        """Whether an annotation of the spec switches something on."""
        return str((self.spec.get("annotations") or {}).get(name, "0")).lower() not in ("0", "false", "")

    def hooks(self, kind: str) -> list[dict[str, Any]]:
        """The spec's hooks of one kind."""
        found: list[dict[str, Any]] = (self.spec.get("hooks") or {}).get(kind) or []
        return found


def import_for(task: InitTask) -> None:
    """Import, in the parent, what only some containers' init needs: it cannot import anything itself."""
    if task.spec.get("hooks"):
        from runc_py import hooks  # noqa: F401 -- here and below: for its being there
    if task.process.get("terminal"):
        from runc_py import console  # noqa: F401 -- as above
    if task.annotated(REAPER_ANNOTATION):
        from runc_py import reaper  # noqa: F401 -- as above


def run_init(task: InitTask) -> NoReturn:
    """Be the container's first process."""
    try:
        keep = [task.channel.fileno(), task.listener.fileno(), *task.namespaces.joined.values(), *task.prepared]
        child.detach("runc-py:[INIT]", task.options.stdio, keep, task.options.preserve_fds, visible=task.rootless)
        room = None
        if task.annotated(REAPER_ANNOTATION):
            from runc_py import reaper

            room = reaper.find_room()
        program, sets = _set_up(task)
        messages.send(task.channel, Kind.READY)
    except BaseException as error:
        _report(task.channel, error)
        os._exit(1)
    _await_start(task, program, sets, room)


def run_stage(task: InitTask, flags: int) -> NoReturn:
    """Between the parent and an init with a user namespace, when there are namespaces to join.

    An existing user namespace is joined first; before a new one, the others are joined, while that is still allowed.
    """
    try:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        joined = task.namespaces.joined
        if "user" in joined:
            syscalls.setns(joined["user"], syscalls.CLONE_NEWUSER, "user namespace")
        else:
            task.namespaces.join()
        if "pid" in joined:
            syscalls.setns(joined["pid"], syscalls.CLONE_NEWPID, "pid namespace")
        pid, _ = syscalls.clone(flags | syscalls.CLONE_PARENT)
    except BaseException as error:
        _report(task.channel, error)
        os._exit(1)
    if pid == 0:
        run_init(task)
    messages.send(task.channel, Kind.STAGE, str(pid))
    os._exit(0)


def _report(channel: Socket, error: BaseException) -> None:
    try:
        messages.send_failure(channel, error)
    except OSError:
        os._exit(1)  # the parent is gone; there is nobody to tell


def _set_up(task: InitTask) -> tuple[process.Program, capabilities.CapabilitySets]:
    if not task.early:
        _enter_namespaces(task)
    _join(task)
    os.setsid()
    if task.options.keyring is not None:
        syscalls.join_session_keyring(task.options.keyring)
    if "network" in task.namespaces.new:
        _raise_loopback()
    _set_names(task)
    usable = capabilities.usable_now()
    root = rootfs.mount_rootfs(task.rootfs_path, task.options.layers, task.linux.get("rootfsPropagation") or "")
    setup = task.plan.setup
    if task.early:
        shown = next((place for place, one in enumerate(setup) if isinstance(one, CgroupTree)), len(setup))
        _run_operations(setup[:shown], root)
        _enter_namespaces(task)
        setup = setup[shown:]
    _run_operations(setup, root)
    slave = _make_terminal(task, root)
    _run_hooks(task)
    _run_operations(task.plan.finish, root)
    _set_sysctls(task.linux.get("sysctl") or {})
    child.set_labels(task.process)
    rootfs.change_root(root, no_pivot=task.options.no_pivot, path=task.rootfs_path)
    os.close(root.fd)
    _set_personality(task.linux.get("personality") or {})
    if slave is not None:
        from runc_py import console

        console.control(slave)
    for one in task.tuning:
        one.apply()
    process.set_rlimits(task.process.get("rlimits") or [])
    entered = child.try_directory(task.process["cwd"])
    sets = process.become(
        *(task.process, usable),
        userns=task.userns,
        privileges=task.privileges,
        keep_groups=task.annotated("run.oci.keep_original_groups"),
    )
    if not entered:
        process.enter_directory(task.process["cwd"])
    program = process.find_program(task.process)
    if task.seccomp is not None and task.seccomp.listener:
        child.install_with_agent(task.seccomp, sets, task.privileges, task.channel)
    return program, sets


def _enter_namespaces(task: InitTask) -> None:
    """User, cgroup and time namespace, which need the parent."""
    new = task.namespaces.new
    # The parent has recorded this process and done what it does by pid: id maps, cgroup, network devices. Until it has,
    # its death ends this process, so that no init is left that no record knows: what was made goes with the namespaces.
    _wait_for_parent(task)
    if task.userns:
        child.become_root_of_namespace()
    elif task.cgroup is not None:
        task.cgroup.enter()
    if "time" in new:
        syscalls.unshare(syscalls.CLONE_NEWTIME)
        if task.linux.get("timeOffsets"):
            messages.send(task.channel, Kind.OFFSETS)
            _wait_for_parent(task)
        own = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(own, syscalls.CLONE_NEWTIME, "time namespace")
        os.close(own)
    if "cgroup" in new:
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)


def _join(task: InitTask) -> None:
    if "user" not in task.namespaces.new:
        task.namespaces.join()
    for fd in task.namespaces.joined.values():
        os.close(fd)


def _wait_for_parent(task: InitTask) -> str:
    message = messages.receive(task.channel)
    if message.kind != Kind.GO:
        os._exit(1)  # the parent died: nobody will clean up after a half-made container but the kernel
    return message.text


def _set_names(task: InitTask) -> None:
    if hostname := task.spec.get("hostname"):
        syscalls.sethostname(hostname)
    if domainname := task.spec.get("domainname"):
        syscalls.setdomainname(domainname)


def _raise_loopback() -> None:
    with light.open_socket(light.AF_INET, light.SOCK_DGRAM) as probe:
        # struct ifreq: name, then the flags as a short; a new loopback device has none that this would take away
        request = b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, sys.byteorder)
        syscalls.ioctl(probe.fileno(), _SIOCSIFFLAGS, request.ljust(_IFREQ_BYTES, b"\0"))


def _run_operations(operations: list[Operation], root: Root) -> None:
    for operation in operations:
        try:
            operation.execute(root)
        except OSError as error:
            raise RuntimeFailure(f"{operation.describe()}: {messages.describe(error)}") from error


def _make_terminal(task: InitTask, root: Root) -> int | None:
    if not task.process.get("terminal"):
        return None
    from runc_py import console

    size = console.size_of(task.process, task.options.console_size)
    master, slave = console.open_terminal(root, size)
    console.bind_console(root, slave)
    messages.send(task.channel, Kind.CONSOLE, fd=master)
    os.close(master)
    return slave


def _run_hooks(task: InitTask) -> None:
    if not task.spec.get("hooks"):
        return
    messages.send(task.channel, Kind.HOOKS)
    task.state["pid"] = int(_wait_for_parent(task))
    from runc_py import hooks

    hooks.run_hooks("createContainer", task.hooks("createContainer"), {**task.state, "status": "creating"})


def _set_sysctls(wanted: dict[str, str]) -> None:
    if not wanted:
        return
    procfs = child.open_procfs()
    try:
        for name, value in wanted.items():
            path = name if "/" in name else name.replace(".", "/")
            try:
                child.write_proc(procfs, f"sys/{path}", str(value))
            except OSError as error:
                raise RuntimeFailure(f"sysctl {name}={value}: {messages.describe(error)}") from error
    finally:
        os.close(procfs)


def _set_personality(wanted: dict[str, Any]) -> None:
    domain = wanted.get("domain")
    if domain:
        syscalls.personality({"LINUX": 0, "LINUX32": 8}[domain])


def _await_start(
    task: InitTask, program: process.Program, sets: capabilities.CapabilitySets, room: Room | None
) -> NoReturn:
    """Wait for ``start`` to connect, then execute; a failure goes to whoever connected."""
    task.channel.close()
    connection, _ = task.listener.accept()
    while not connection.recv(1):  # whoever connected was killed before it said so: the next one will
        connection.close()
        connection, _ = task.listener.accept()
    try:
        if task.hooks("startContainer"):
            from runc_py import hooks

            hooks.run_hooks("startContainer", task.hooks("startContainer"), {**task.state, "status": "created"})
        child.lock_down(task.seccomp, sets, task.privileges)
        if room is not None:
            from runc_py import reaper

            reaper.supervise(program, task.options.preserve_fds, room)
        process.execute(program, task.options.preserve_fds)
    except BaseException as error:
        _report(connection, error)
    os._exit(255)
