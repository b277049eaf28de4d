"""``exec``: another process in a running container.

Rule: the same child steps as init's, in namespaces that exist already. The error channel is close-on-exec: its end of
file means that the program runs.
"""

from __future__ import annotations

from runc_py import capabilities, cgroups, child, console, light, messages, namespaces, process, state, syscalls
from runc_py import spec as specs
from runc_py.create import serve_listener, set_oom_score
from runc_py.errors import InvalidState, RuntimeFailure
from runc_py.light import TYPE_CHECKING, Socket, os
from runc_py.messages import Kind
from runc_py.paths import Root

if TYPE_CHECKING:
    from typing import Any, NoReturn

    from runc_py.cgroups import CgroupManager
    from runc_py.runtime import Launched, Runtime, Stdio
    from runc_py.scheduling import Affinity

_EXEC_FAILED = "unable to start container process: "


def execute_process(
    runtime: Runtime,
    container_id: str,
    process: dict[str, Any],
    *,
    stdio: Stdio | None,
    preserve_fds: int,
    console_size: tuple[int, int] | None,
    ignore_paused: bool,
    cgroup: str,
) -> Launched:
    """See ``Runtime.exec``."""
    container = state.load(runtime.root, container_id)
    status = container.require("exec")
    if status == "paused" and not ignore_paused:
        raise InvalidState("cannot exec in a paused container (use --ignore-paused to override)")
    filled = _with_defaults(process, container)
    specs.validate_process(filled)
    target = os.pidfd_open(container.pid)
    try:
        if not container.alive():  # also closes the race between reading the state and opening the pidfd
            raise InvalidState("cannot exec in a stopped container")
        task = _ExecTask(container, filled, target, stdio, preserve_fds, console_size)
        if cgroup not in ("", "/"):
            task.manager = task.manager.below(cgroup)
        return task.run()
    finally:
        os.close(target)


def _with_defaults(process: dict[str, Any], container: state.ContainerState) -> dict[str, Any]:
    """What an OCI process object for exec leaves open comes from the container's own process.

    Not ``noNewPrivileges``: Go's encoders leave it out where it is false, and so it is understood, by runc too.
    """
    own = container.process
    filled = dict(process)
    for key in ("capabilities", "rlimits", "apparmorProfile", "selinuxLabel", "cwd", "user"):
        if key not in filled and key in own:
            filled[key] = own[key]
    return filled


class _ExecTask:
    """One exec. ``run`` is the parent's side, ``_run_child`` the child's."""

    def __init__(
        self,
        container: state.ContainerState,
        process_spec: dict[str, Any],
        target: int,
        stdio: Stdio | None,
        preserve_fds: int,
        console_size: tuple[int, int] | None,
    ) -> None:
        self.container = container
        self.process = process_spec
        self.target = target
        self.stdio = stdio
        self.preserve_fds = preserve_fds
        self.console_size = console_size
        kinds = {entry["type"] for entry in container.namespaces}
        self.userns = "user" in kinds
        self.flags = sum(namespaces.FLAGS[kind] for kind in kinds)
        self.seccomp = _load_seccomp(container)
        self.privileges = child.privileges_needed(self.seccomp, bool(process_spec.get("noNewPrivileges")))
        self.manager: CgroupManager = cgroups.load(container.cgroup)
        self.tuning = _tuning(process_spec)
        self.affinity = _affinity(process_spec)

    def run(self) -> Launched:
        from runc_py.runtime import Launched

        ours, theirs = light.socketpair(light.SOCK_SEQPACKET)
        with ours:
            try:
                pid, pidfd = self._through_stage(ours, theirs) if self.userns else self._direct(theirs)
            finally:
                theirs.close()
            terminal: int | None = None
            try:
                if self.process.get("oomScoreAdj") is not None:
                    set_oom_score(pid, int(self.process["oomScoreAdj"]))
                if self.userns:
                    self.manager.apply(pid)
                    messages.send(ours, Kind.GO)
                while (message := messages.receive(ours)).kind != Kind.CLOSED:
                    if message.kind == Kind.FAILED:
                        error = messages.failure(message)
                        raise type(error)(f"{_EXEC_FAILED}{error}")
                    if message.kind == Kind.CONSOLE:
                        terminal = message.fd
                    if message.kind == Kind.LISTENER and self.seccomp is not None:
                        serve_listener(message, pidfd, pid, self.seccomp, self.container.oci_state("running"))
                        messages.send(ours, Kind.GO)
            except BaseException:
                _abandon(pid, pidfd, terminal)
                raise
        return Launched(pid, pidfd, terminal)

    def _direct(self, channel: Socket) -> tuple[int, int]:
        pid_namespace = None
        if self.flags & syscalls.CLONE_NEWPID:
            pid_namespace = os.open(f"/proc/{self.container.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        # With an affinity the child enters its cgroup by itself, after the first step of it.
        cgroup = self.manager.descriptor() if self.affinity is None else None
        try:
            pid, pidfd = namespaces.clone_into(pid_namespace, lambda: syscalls.clone(0, cgroup))
            if pid == 0:
                self._run_child(channel, enter_cgroup=cgroup is None)
        except OSError as error:
            raise RuntimeFailure(f"{_EXEC_FAILED}{messages.describe(error)}") from error
        finally:
            for fd in (pid_namespace, cgroup):
                if fd is not None:
                    os.close(fd)
        return pid, pidfd

    def _through_stage(self, ours: Socket, theirs: Socket) -> tuple[int, int]:
        """A user namespace must be joined before its pid namespace can be: one more process, gone at once."""
        stage, pidfd = syscalls.clone(0)
        if stage == 0:
            try:
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
                syscalls.setns(self.target, self.flags & (syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWPID))
                pid, _ = syscalls.clone(syscalls.CLONE_PARENT)
            except BaseException as error:
                messages.send_failure(theirs, error)
                os._exit(1)
            if pid == 0:
                self._run_child(theirs, enter_cgroup=False)
            messages.send(theirs, Kind.STAGE, str(pid))
            os._exit(0)
        os.close(pidfd)
        message = messages.receive(ours)
        os.waitpid(stage, 0)
        if message.kind != Kind.STAGE:
            raise RuntimeFailure(f"{_EXEC_FAILED}{message.text.partition(chr(10))[2] or 'the stage process died'}")
        pid = int(message.text)
        return pid, os.pidfd_open(pid)

    def _run_child(self, channel: Socket, *, enter_cgroup: bool) -> NoReturn:
        try:
            child.detach("runc-py:[EXEC]", self.stdio, [channel.fileno(), self.target], self.preserve_fds)
            if self.affinity is not None:
                self.affinity.first_step()
            if enter_cgroup:
                self.manager.enter()
            if self.userns:
                if messages.receive(channel).kind != Kind.GO:
                    os._exit(1)
                child.become_root_of_namespace()
            usable = capabilities.usable_now()
            own = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWPID
            syscalls.setns(self.target, self.flags & ~own, "namespaces of the container")
            os.close(self.target)
            os.setsid()
            self._become(channel, usable)
        except BaseException as error:
            messages.send_failure(channel, error)
        os._exit(255)

    def _become(self, channel: Socket, usable: int) -> None:
        if self.process.get("terminal"):
            root = Root(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            size = console.size_of(self.process, self.console_size)
            master, slave = console.open_terminal(root, size)
            messages.send(channel, Kind.CONSOLE, fd=master)
            os.close(master)
            os.close(root.fd)
            console.control(slave)
        child.set_labels(self.process)
        if self.affinity is not None:
            self.affinity.final_step()
        for one in self.tuning:
            one.apply()
        process.set_rlimits(self.process.get("rlimits") or [])
        entered = child.try_directory(self.process["cwd"])
        sets = process.become(self.process, usable, userns=self.userns, privileges=self.privileges)
        if not entered:
            process.enter_directory(self.process["cwd"])
        program = process.find_program(self.process)
        if self.seccomp is not None and self.seccomp.listener:
            child.install_with_agent(self.seccomp, sets, self.privileges, channel)
        child.lock_down(self.seccomp, sets, self.privileges)
        process.execute(program, self.preserve_fds)


def _tuning(process_spec: dict[str, Any]) -> tuple[child.Tuning, ...]:
    if not (process_spec.get("scheduler") or process_spec.get("ioPriority")):
        return ()
    from runc_py import scheduling

    found = (scheduling.scheduler_of(process_spec), scheduling.io_priority_of(process_spec))
    return tuple(one for one in found if one is not None)


def _affinity(process_spec: dict[str, Any]) -> Affinity | None:
    if not process_spec.get("execCPUAffinity"):
        return None
    from runc_py import scheduling

    return scheduling.affinity_of(process_spec)


def _load_seccomp(container: state.ContainerState) -> child.SeccompFilter | None:
    if container.seccomp is None:
        return None
    with open(f"{container.directory}/{state.SECCOMP_FILE}", "rb") as file:
        record = container.seccomp
        listener, metadata = str(record.get("listener") or ""), str(record.get("metadata") or "")
        return child.SeccompFilter(file.read(), int(record["flags"]), listener, metadata)


def _abandon(pid: int, pidfd: int, terminal: int | None) -> None:
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it has ended and somebody else collected it
    os.close(pidfd)
    if terminal is not None:
        os.close(terminal)
