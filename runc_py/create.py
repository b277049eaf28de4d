"""``create``: the parent's side of making a container.

Rule: recorded before made. The container's directory and its record, which names its cgroups, exist before these; a
process that goes ahead of the record ends with this one. Whatever fails, everything made so far is undone here, and
after a kill -9 by ``delete --force``.
"""

from __future__ import annotations

import time

from runc_py import (
    cgroups,
    child,
    errors,
    init,
    light,
    messages,
    names,
    namespaces,
    operations,
    rootfs,
    shape,
    state,
    syscalls,
)
from runc_py import spec as specs
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import TYPE_CHECKING, Socket, os, signal
from runc_py.messages import Kind, Message

if TYPE_CHECKING:
    from typing import Any

    from runc_py.child import Tuning
    from runc_py.operations import Operation
    from runc_py.prepare import Prepared
    from runc_py.resctrl import Group
    from runc_py.runtime import Launched, Runtime

    State = dict[str, Any]

_END_SECONDS = 10.0
INIT_FAILED = "unable to start container process: error during container init: "


def create_container(
    runtime: Runtime, container_id: str, bundle: str, options: init.CreateOptions, spec: dict[str, Any] | None
) -> Launched:
    """See ``Runtime.create``."""
    names.container_id(container_id)
    bundle = os.path.abspath(bundle)
    if spec is None:
        spec = specs.load_spec(bundle)
    else:
        specs.validate_spec(spec)
    spec = shape.plain(spec)
    if not spec.get("process"):
        raise InvalidSpec("process: must be there to create a container")
    directory = state.reserve(runtime.root, container_id)
    try:
        if options.notify_socket:
            from runc_py import notify

            spec = notify.add_to_spec(spec, directory, options.notify_socket)
        creation = Creation(runtime, container_id, bundle, directory, spec)
    except BaseException:
        state.forget(directory)
        raise
    try:
        return creation.run(options)
    except BaseException:
        creation.undo()
        raise
    finally:
        creation.release()


def compile_seccomp(spec: dict[str, Any], cache: str) -> child.SeccompFilter | None:
    """The filter of ``linux.seccomp``; None when there is none."""
    profile = (spec.get("linux") or {}).get("seccomp")
    if not profile:
        return None
    from runc_py import seccomp

    listener = seccomp.listener_of(profile)
    if _annotated(spec, "run.oci.seccomp_fail_unknown_syscall"):
        from runc_py.libseccomp import unknown_calls

        if names := unknown_calls(profile):
            raise InvalidSpec(f"linux.seccomp.syscalls: unknown system calls: {', '.join(names)}")
    program = seccomp.compile_filter(profile, cache_dir=cache)
    return child.SeccompFilter(program, seccomp.flags_of(profile), listener, profile.get("listenerMetadata") or "")


def _annotated(spec: dict[str, Any], name: str) -> bool:
    value = (spec.get("annotations") or {}).get(name)
    return value is not None and value not in ("0", "false")


def tuning_of(spec: dict[str, Any]) -> tuple[Tuning, ...]:
    """What init applies to itself before it changes its user: scheduler, I/O priority, memory policy."""
    process, linux = spec["process"], spec.get("linux") or {}
    if not (process.get("scheduler") or process.get("ioPriority") or linux.get("memoryPolicy")):
        return ()
    from runc_py import scheduling

    found = (
        scheduling.scheduler_of(process),
        scheduling.io_priority_of(process),
        scheduling.memory_policy_of(linux),
    )
    return tuple(one for one in found if one is not None)


def serve_listener(message: Message, pidfd: int, pid: int, filter_: child.SeccompFilter, observed: State) -> None:
    """Take the child's notification descriptor and give it to the agent."""
    from runc_py import seccomp

    fd = syscalls.pidfd_getfd(pidfd, int(message.text))
    try:
        seccomp.hand_to_agent(filter_.listener, fd, filter_.metadata, pid, observed)
    finally:
        os.close(fd)


class Creation:
    """One container being made, and how to unmake it."""

    def __init__(self, runtime: Runtime, container_id: str, bundle: str, directory: str, spec: dict[str, Any]) -> None:
        linux: dict[str, Any] = spec.get("linux") or {}
        if any(entry["type"] == "user" and not entry.get("path") for entry in linux.get("namespaces") or ()):
            linux = {**linux, **namespaces.missing_maps(linux)}
            spec = {**spec, "linux": linux}
        self.linux = linux
        self.spec = spec
        self.directory = directory
        self.seccomp = compile_seccomp(spec, f"{os.path.abspath(runtime.root)}/.seccomp")
        self.manager = cgroups.manager_for(
            linux.get("cgroupsPath") or "",
            container_id,
            driver=runtime.cgroup_driver,
            annotations=spec.get("annotations"),
        )
        self.namespaces = namespaces.Namespaces(linux.get("namespaces") or [])
        self.userns = "user" in self.namespaces.kinds
        if "mount" not in self.namespaces.kinds:
            raise InvalidSpec("linux.namespaces: a container needs a mount namespace")
        self.rootfs = specs.rootfs_path(spec, bundle)
        self.state = state.ContainerState(
            directory,
            {
                "id": container_id,
                "pid": 0,
                "start_time": 0,
                "created": _now(),
                "bundle": bundle,
                "rootfs": self.rootfs,
                "cgroup": self.manager.save(),
                "owner": os.geteuid(),
                "seccomp": None if self.seccomp is None else self.seccomp.record(),
                "spec": {**spec, "linux": {key: value for key, value in linux.items() if key != "seccomp"}},
            },
        )
        self.prepared: Prepared | None = None
        self.pid = self.pidfd = -1
        self.group: Group | None = None
        self.console: int | None = None
        self.channel: Socket | None = None
        self.listener: Socket | None = None
        self.waiting, runtime.waiting = runtime.waiting, None

    def run(self, options: init.CreateOptions) -> Launched:
        """Make it; the result's descriptors belong to the caller."""
        from runc_py.runtime import Launched

        if not os.path.isdir(self.rootfs):
            raise InvalidSpec(f"root.path: {self.rootfs} is not a directory")
        self.namespaces.open()
        if self.seccomp is not None:
            state.write_atomically(self.directory, state.SECCOMP_FILE, self.seccomp.program)
        early = self._init_goes_ahead()
        if self.waiting is not None and not (early and self.waiting.call(self.namespaces)):
            self._dismiss_waiting()
        if not early:
            self.state.save()
            self._make_groups()
        plan = rootfs.plan_rootfs(self.spec, self.state.bundle, cgroups.shown_in(self.spec, self.manager), self.userns)
        self._prepare(plan.setup)
        self.listener = _listen(self.directory)
        self.channel, theirs = light.socketpair(light.SOCK_SEQPACKET)
        task = init.InitTask(
            spec=self.spec,
            namespaces=self.namespaces,
            plan=plan,
            rootfs_path=self.rootfs,
            channel=theirs,
            listener=self.listener,
            cgroup=None if self._placed_by_parent() or self._starts_in_cgroup() else self.manager,
            seccomp=self.seccomp,
            options=options,
            state=self.state.oci_state("creating"),
            prepared=self.prepared.fds if self.prepared is not None else (),
            tuning=tuning_of(self.spec),
            rootless="user" in self.namespaces.new and os.geteuid() != 0,
            early=early,
        )
        init.import_for(task)
        try:
            self._clone(task)
        finally:
            theirs.close()
        if early:
            self._make_groups()
        self._place()
        self._converse()
        return Launched(self.pid, self.pidfd, self.console)

    def _init_goes_ahead(self) -> bool:
        """Whether init can begin its mounts while the dozen cgroups of v1 are made.

        Not when it needs something of the parent first, and not when it fills memory that its cgroup has to account
        for.
        """
        return (
            self.manager.kind == "v1"
            and os.geteuid() == 0
            and not self.userns
            and "time" not in self.namespaces.kinds
            and self.namespaces.joined.keys() <= {"network", "ipc", "uts"}
            and not any("tmpcopyup" in (entry.get("options") or ()) for entry in self.spec.get("mounts") or ())
        )

    def _make_groups(self) -> None:
        self._make_cgroup()
        if resources := self.linux.get("resources"):
            self.manager.set(resources)
        self._make_rdt_group()

    def _make_cgroup(self) -> None:
        """An ordinary user may have no cgroup to make one in: without limits asked for, none is needed (as in runc)."""
        try:
            self.manager.create()
        except cgroups.CgroupError as error:
            denied = isinstance(error.__cause__, PermissionError) and os.geteuid() != 0
            limits = {key: value for key, value in (self.linux.get("resources") or {}).items() if key != "devices"}
            if not denied or self.linux.get("cgroupsPath") or any(limits.values()):
                raise
            self.manager.destroy()
            self.manager = cgroups.load({"kind": "disabled"})
            self.state.cgroup = self.manager.save()
            self.state.save()

    def _make_rdt_group(self) -> None:
        if wanted := self.linux.get("intelRdt"):
            from runc_py import resctrl

            planned = resctrl.planned_group(wanted, self.state.id)
            self.state.resctrl = list(planned)
            self.state.save()
            self.group = resctrl.create_group(wanted, planned)

    def _prepare(self, setup: list[Operation]) -> None:
        if self.userns or any(isinstance(one, operations.BindMount) and one.id_mapped for one in setup):
            from runc_py import prepare

            self.prepared = prepare.Prepared(self.linux, self.namespaces, self.directory)
            self.prepared.prepare(setup)

    def _starts_in_cgroup(self) -> bool:
        return self.manager.kind == "v2"

    def _placed_by_parent(self) -> bool:
        """A child with a user namespace may not enter by itself, and a systemd scope begins with a process in it."""
        return self.userns or self.manager.kind.startswith("systemd")

    def _clone(self, task: init.InitTask) -> None:
        flags = self.namespaces.clone_flags
        if self.waiting is not None and self.waiting.give(task, self.state.bundle):
            self.pid, self.pidfd, self.waiting = self.waiting.pid, self.waiting.pidfd, None
        elif self.userns and self.namespaces.joined:
            self._clone_through_stage(task, flags)
        else:
            cgroup = self.manager.descriptor() if not self.userns else None
            try:
                joined = self.namespaces.joined.get("pid")
                self.pid, self.pidfd = namespaces.clone_into(joined, lambda: syscalls.clone(flags, cgroup))
                if self.pid == 0:
                    init.run_init(task)
            except OSError as error:
                raise RuntimeFailure(f"unable to start container process: {messages.describe(error)}") from error
            finally:
                if cgroup is not None:
                    os.close(cgroup)
        status = state.process_status(self.pid)
        self.state.pid = self.pid
        self.state.ticks = status[1] if status else 0
        self.state.save()

    def _clone_through_stage(self, task: init.InitTask, flags: int) -> None:
        stage, pidfd = syscalls.clone(0)
        if stage == 0:
            init.run_stage(task, flags)
        os.close(pidfd)
        message = self._receive()
        os.waitpid(stage, 0)
        if message.kind != Kind.STAGE:
            raise _init_failure(message)
        self.pid = int(message.text)
        self.pidfd = os.pidfd_open(self.pid)

    def _place(self) -> None:
        """The things a parent does to its new child by pid: maps, cgroup, OOM score."""
        if "user" in self.namespaces.new:
            namespaces.write_id_maps(self.pid, self.linux)
        if self._placed_by_parent():
            self.manager.apply(self.pid)
        score = self.spec["process"].get("oomScoreAdj")
        if score is not None:
            set_oom_score(self.pid, int(score))
        if self.group is not None:
            self.group.enter(self.pid)
        if devices := self.linux.get("netDevices"):
            from runc_py import netdevices

            netdevices.move_devices(devices, self.pid)
        self._send(Kind.GO)

    def _converse(self) -> None:
        while True:
            message = self._receive()
            if message.kind == Kind.READY:
                return
            if message.kind == Kind.CONSOLE:
                self.console = message.fd
            elif message.kind == Kind.OFFSETS:
                namespaces.write_time_offsets(self.pid, self.linux["timeOffsets"])
                self._send(Kind.GO)
            elif message.kind == Kind.HOOKS:
                from runc_py import hooks

                observed = self.state.oci_state("creating")
                for kind in ("prestart", "createRuntime"):
                    hooks.run_hooks(kind, self.state.hooks(kind), observed)
                self._send(Kind.GO, str(self.pid))
            elif message.kind == Kind.LISTENER and self.seccomp is not None:
                serve_listener(message, self.pidfd, self.pid, self.seccomp, self.state.oci_state("creating"))
                self._send(Kind.GO)
            elif message.kind == Kind.WARNING:
                errors.warn(message.text)
            else:
                raise _init_failure(message)

    def _receive(self) -> Message:
        assert self.channel is not None
        return messages.receive(self.channel)

    def _send(self, kind: bytes, text: str = "") -> None:
        assert self.channel is not None
        try:
            messages.send(self.channel, kind, text)
        except BrokenPipeError:
            raise _init_failure(self._receive()) from None

    def _dismiss_waiting(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.dismiss()

    def undo(self) -> None:
        """Take back everything; problems on the way do not hide the error that led here."""
        if self.pid > 0:
            _end(self.pid, self.pidfd)
        for fd in (self.pidfd, self.console):
            if fd is not None and fd >= 0:
                os.close(fd)
        try:
            self.manager.destroy()
            if self.group is not None:
                self.group.remove()
        except (RuntimeFailure, OSError) as error:
            errors.warn(f"cgroup of {self.state.id} is left: {error}")
        state.forget(self.directory)

    def release(self) -> None:
        """Close the parent's copies of what init uses."""
        self._dismiss_waiting()
        self.namespaces.close()
        if self.prepared is not None:
            self.prepared.close()
        for end in (self.channel, self.listener):
            if end is not None:
                end.close()


def _init_failure(message: Message) -> RuntimeFailure:
    if message.kind != Kind.FAILED:
        return RuntimeFailure(
            "unable to start container process: init died while it was set up (killed or out of memory)"
        )
    error = messages.failure(message)
    return type(error)(f"{INIT_FAILED}{error}")


def _end(pid: int, pidfd: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except ProcessLookupError:
        return
    except ChildProcessError:  # our sibling: the parent reaps it
        import select

        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(_END_SECONDS * 1000)


def _listen(directory: str) -> Socket:
    """The socket init waits on. Bound through a descriptor: a path may be longer than sun_path."""
    listener = light.open_socket(light.AF_UNIX, light.SOCK_SEQPACKET)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{state.START_SOCKET}")
    finally:
        os.close(fd)
    os.chmod(f"{directory}/{state.START_SOCKET}", 0o600)
    listener.listen(1)
    return listener


def set_oom_score(pid: int, score: int) -> None:
    """``process.oomScoreAdj``; lowering it without CAP_SYS_RESOURCE is a warning, as the container can still run."""
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(score).encode())
        finally:
            os.close(fd)
    except OSError as error:
        errors.warn(f"cannot set oom_score_adj to {score}: {error.strerror}")


def _now() -> str:
    nanoseconds = time.time_ns()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 1_000_000_000))
    return f"{moment}.{nanoseconds % 1_000_000_000:09d}Z"
