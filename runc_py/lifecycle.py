"""Everything done to a container that exists: start, kill, delete, pause, update, and looking at it.

Rule: each operation loads the record, asks the one table of ``state`` whether it fits, and acts. Signals go through a
pidfd whose process was verified after it was opened, so they never reach a process that got the number later.
"""

from __future__ import annotations

from runc_py import cgroups, errors, names, state
from runc_py.errors import ContainerNotFound, InvalidState, ProcessFailure, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os, signal

if TYPE_CHECKING:
    from typing import Any

    from runc_py.runtime import Runtime

KILL_SECONDS = 10.0
"""How long ``delete --force`` waits for a killed init to be gone (runc: 10 s)."""


def start_container(runtime: Runtime, container_id: str, *, resume: bool) -> None:
    """See ``Runtime.start``."""
    container = state.load(runtime.root, container_id)
    status = container.status()
    if resume and status in ("stopped", "paused"):
        return  # both come after a start
    if status == "stopped":
        raise InvalidState("cannot start a container that has stopped")
    if status != "created" and not resume:
        raise InvalidState(f"cannot start a container in the {status} state")
    answer = _release(container, state.START_SOCKET if status == "created" else state.STARTED_SOCKET)
    if answer:
        name, _, text = answer.partition("\n")
        kind = errors.BY_NAME.get(name, RuntimeFailure)
        raise kind(f"unable to start container process: {text}")
    if not container.hooks("poststart"):
        return
    from runc_py import hooks

    try:
        hooks.run_hooks("poststart", container.hooks("poststart"), container.oci_state("running"))
    except errors.HookFailure:
        _signal_init(container, signal.SIGKILL)  # as runc does: a container without its poststart hooks does not run
        raise


def _release(container: state.ContainerState, name: str) -> str:
    """Connect to init and let it go on; what it answers before ``execve`` closes the connection is its failure.

    A start that was cut off goes on through ``STARTED_SOCKET``: an init that was not told yet still listens there, one
    that was told closes it as it executes.
    """
    from runc_py import light, messages

    directory = os.open(container.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with light.open_socket(light.AF_UNIX, light.SOCK_SEQPACKET) as connection:
            connection.connect(f"/proc/self/fd/{directory}/{name}")
            os.rename(f"{container.directory}/{name}", f"{container.directory}/{state.STARTED_SOCKET}")
            connection.send(b"s")
            message = messages.receive(connection)
    except (ConnectionError, FileNotFoundError) as error:
        if name == state.STARTED_SOCKET:
            return ""
        raise ProcessFailure(f"cannot start container {container.id}: its init is gone ({error.strerror})") from error
    finally:
        os.close(directory)
    return message.text if message.kind == messages.Kind.FAILED else ""


def kill_container(runtime: Runtime, container_id: str, sig: int, *, everyone: bool) -> None:
    """See ``Runtime.kill``."""
    container = state.load(runtime.root, container_id)
    if everyone:
        cgroups.load(container.cgroup).kill_all(sig)
        return
    status = container.status()
    if status in ("stopped", "creating"):
        raise InvalidState("container not running")
    if not _signal_init(container, sig):
        raise InvalidState("container not running")
    manager = cgroups.load(container.cgroup)
    if sig == signal.SIGKILL and status == "paused":
        manager.thaw_if_there()  # a frozen v1 process dies only when it is thawed
    elif (
        sig == signal.SIGKILL
        and manager.kind != "disabled"
        and not any(entry["type"] == "pid" for entry in container.namespaces)
    ):
        manager.kill_all(sig)  # without a pid namespace the kernel does not end the others with init


def _signal_init(container: state.ContainerState, sig: int) -> bool:
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return False
    try:
        if not container.alive():
            return False
        signal.pidfd_send_signal(pidfd, sig)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def delete_container(runtime: Runtime, container_id: str, *, force: bool) -> None:
    """See ``Runtime.delete``."""
    try:
        container = state.load(runtime.root, container_id)
    except ContainerNotFound:
        if not force:
            raise
        _delete_remains(runtime, container_id)
        return
    status = container.status()
    if not force and status not in state.ALLOWED["delete"]:
        raise InvalidState(f"cannot delete container {container_id} that is not stopped: {status}")
    manager = cgroups.load(container.cgroup)
    if status != "stopped":
        _end_init(container, manager)
    if manager.kind != "disabled":
        manager.kill_all(signal.SIGKILL)
    manager.destroy()
    if container.resctrl:
        from runc_py import resctrl

        resctrl.Group(*container.resctrl).remove()
    state.forget(container.directory)
    if not container.hooks("poststop"):
        return
    from runc_py import hooks

    for problem in hooks.run_hooks_quietly("poststop", container.hooks("poststop"), container.oci_state("stopped")):
        errors.warn(problem)


def _delete_remains(runtime: Runtime, container_id: str) -> None:
    """A directory without a record: its creator was killed before anything else was made."""
    directory = os.path.join(os.path.abspath(runtime.root), names.container_id(container_id))
    state.forget(directory)


def _end_init(container: state.ContainerState, manager: cgroups.CgroupManager) -> None:
    if container.pid <= 0:
        return
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    try:
        if not container.alive():
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if manager.frozen():
            manager.thaw_if_there()
        import select

        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(KILL_SECONDS * 1000):
            raise RuntimeFailure(f"container {container.id}: init {container.pid} does not die after SIGKILL")
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def container_state(runtime: Runtime, container_id: str) -> dict[str, Any]:
    """See ``Runtime.state``."""
    container = state.load(runtime.root, container_id)
    status = container.status()
    described = container.oci_state(status)
    described["rootfs"] = container.rootfs
    described["created"] = container.created
    described["owner"] = ""
    return described


def list_containers(runtime: Runtime) -> list[dict[str, Any]]:
    """See ``Runtime.list``."""
    try:
        names = sorted(os.listdir(runtime.root))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if name.startswith("."):
            continue
        try:
            described = container_state(runtime, name)
            described["owner"] = _owner(f"{runtime.root}/{name}")
        except (RuntimeFailure, OSError) as error:
            errors.warn(f"container {name}: {error}")
            continue
        found.append(described)
    return found


def _owner(path: str) -> str:
    uid = os.stat(path).st_uid
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def container_pids(runtime: Runtime, container_id: str) -> list[int]:
    """See ``Runtime.pids``."""
    container = state.load(runtime.root, container_id)
    manager = cgroups.load(container.cgroup)
    if manager.kind == "disabled":
        return [container.pid] if container.alive() else []
    return manager.pids()


def pause_container(runtime: Runtime, container_id: str) -> None:
    """See ``Runtime.pause``."""
    container = state.load(runtime.root, container_id)
    status = container.status()
    if status not in state.ALLOWED["pause"]:
        raise InvalidState(f"container not running: {container_id} is {status}")
    cgroups.load(container.cgroup).freeze()


def resume_container(runtime: Runtime, container_id: str) -> None:
    """See ``Runtime.resume``."""
    container = state.load(runtime.root, container_id)
    if container.status() not in state.ALLOWED["resume"]:
        raise InvalidState("container not paused")
    cgroups.load(container.cgroup).thaw()


def update_container(runtime: Runtime, container_id: str, resources: dict[str, Any], rdt: dict[str, Any]) -> None:
    """See ``Runtime.update``."""
    container = state.load(runtime.root, container_id)
    container.require("update")
    if rdt:
        from runc_py import resctrl

        resctrl.update_group(rdt, container, container_pids(runtime, container_id))
    cgroups.load(container.cgroup).set(resources)
    linux = container.spec.setdefault("linux", {})
    linux["resources"] = {**(linux.get("resources") or {}), **resources}
    container.save()


def container_stats(runtime: Runtime, container_id: str) -> dict[str, Any]:
    """See ``Runtime.stats``."""
    container = state.load(runtime.root, container_id)
    if container.status() == "stopped":
        raise InvalidState(f"container with id {container_id} is not running")
    return cgroups.load(container.cgroup).stats()
