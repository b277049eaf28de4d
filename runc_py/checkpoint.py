"""``checkpoint`` and ``restore``: a container's processes to files and back, by the ``criu`` program.

Rule: criu does all that concerns processes, memory and namespaces; the runtime tells it what comes from outside (bind
mounts, standard streams) and keeps the record and the cgroup. The images also get ``descriptors.json``, as runc's do:
where the standard streams pointed. Source: criu(8).
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from runc_py import cgroups, state, syscalls
from runc_py.errors import InvalidState, NotBuilt, RuntimeFailure
from runc_py.light import os

if TYPE_CHECKING:
    from runc_py import criu_rpc
    from runc_py.cgroups import CgroupManager
    from runc_py.runtime import Launched, Runtime

DESCRIPTORS = "descriptors.json"
_DEFAULTS = (signal.SIGPIPE, signal.SIGTERM)
"""Signals that criu must not find ignored: it ends its helpers by SIGTERM and waits for their ends."""
CGROUP_MODES = ("soft", "full", "strict", "ignore")


class CriuOptions(NamedTuple):
    """``flags`` are passed on to criu as they are; ``images`` and ``work`` are directories."""

    program: str
    images: str
    work: str
    flags: Sequence[str]
    cgroup_mode: str = "soft"


def find_criu(program: str = "") -> str:
    """Path of criu. Raises NotBuilt where there is none."""
    found = shutil.which(program or "criu")
    if found is None:
        raise NotBuilt(f"checkpoint and restore need the program {program or 'criu'}: install the package criu")
    return found


def checkpoint_container(
    runtime: Runtime, container_id: str, options: CriuOptions, *, leave_running: bool, pre_dump: bool
) -> None:
    """Write the container's processes to ``options.images``; without ``leave_running`` they are gone afterwards."""
    container = state.load(runtime.root, container_id)
    status = container.status()
    if status not in ("running", "paused"):
        raise InvalidState(f"cannot checkpoint container {container_id}: it is {status}")
    os.makedirs(options.images, 0o700, exist_ok=True)
    streams = _streams(container.pid)
    with open(f"{options.images}/{DESCRIPTORS}", "w", encoding="utf-8") as file:
        json.dump(streams, file)
    if freezer := _freezer(container.cgroup):
        options = options._replace(flags=[*options.flags, "--freeze-cgroup", freezer])
    if _has_terminal(container.spec):
        _dump_with_terminal(container, options, leave_running=leave_running, pre_dump=pre_dump)
        return
    command = [options.program, "pre-dump" if pre_dump else "dump", "--tree", str(container.pid)]
    command += _common(options, "dump.log", container.rootfs, container.spec)
    command += [f"--manage-cgroups={options.cgroup_mode}"]
    for destination, _ in outside_mounts(container.spec, container.bundle, cgroups.load(container.cgroup)):
        command += ["--external", f"mnt[{destination}]:{destination}"]
    command += [word for name in dict.fromkeys(streams) if name.startswith("file[") for word in ("--external", name)]
    if leave_running and not pre_dump:
        command.append("--leave-running")
    _, status_word = os.waitpid(_spawn(command), 0)
    if status_word:
        raise _criu_failure("checkpoint", options, "dump.log", status_word)


def _streams(pid: int) -> list[str]:
    """Where the standard streams point: ``pipe:[…]``, a path of the container, or ``file[mount:inode]`` outside of it.

    The last is what criu calls a file (FIFO, null device) that is there at the restore as well. "": there is none.
    """
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        inside = {line.split(" ", 1)[0] for line in file}
    found = []
    for number in (0, 1, 2):
        try:
            name = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            name = ""  # the program has closed it
        if name.startswith("/"):
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
                mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
            if mount not in inside:
                name = f"file[{int(mount):x}:{os.stat(f'/proc/{pid}/fd/{number}').st_ino:x}]"
        found.append(name)
    return found


def _freezer(record: dict[str, Any]) -> str:
    """The directory that freezes the container: criu stops all of it at once there, and copes with a paused one."""
    paths = cgroups.load(record).paths
    unified = paths.get("", "")
    return paths.get("freezer") or (unified if os.path.exists(f"{unified}/cgroup.freeze") else "")


def _dump_with_terminal(container: Any, options: CriuOptions, *, leave_running: bool, pre_dump: bool) -> None:
    from runc_py import criu_rpc

    mounts = outside_mounts(container.spec, container.bundle, cgroups.load(container.cgroup))
    job = criu_rpc.Job(
        criu_rpc.PRE_DUMP if pre_dump else criu_rpc.DUMP,
        container.rootfs,
        "dump.log",
        [f"mnt[{destination}]:{destination}" for destination, _ in mounts],
        _flags_with_config(options, container.spec),
        options.cgroup_mode,
        container.pid,
        leave_running or pre_dump,
    )
    outcome, status_word = _by_protocol(options, job, os.execv)
    if not outcome.done:
        raise _criu_failure("checkpoint", options, "dump.log", status_word)


def outside_mounts(spec: dict[str, Any], bundle: str, manager: CgroupManager) -> list[tuple[str, str]]:
    """(destination, source) of the mounts whose content is the host's."""
    found = []
    kinds = {entry.get("type") for entry in (spec.get("linux") or {}).get("namespaces") or ()}
    for entry in spec.get("mounts") or ():
        options = entry.get("options") or ()
        if entry.get("type") == "bind" or "bind" in options or "rbind" in options:
            destination = os.path.normpath("/" + entry["destination"].lstrip("/"))
            found.append((destination, os.path.join(bundle, entry.get("source") or "")))
        elif entry.get("type") in ("cgroup", "cgroup2"):
            shown = manager.container_mounts(cgroup_namespace="cgroup" in kinds).mounts
            top = os.path.normpath("/" + entry["destination"].lstrip("/"))
            found += [(os.path.join(top, one.name), one.source) for one in shown if one.type == "bind"]
    return found


def restore_container(
    runtime: Runtime, container_id: str, bundle: str, spec: dict[str, Any], options: CriuOptions
) -> Launched:
    """Make a container of what ``checkpoint`` wrote: record and cgroup here, processes by criu, our stdio as theirs."""
    from runc_py import create

    directory = state.reserve(runtime.root, container_id)
    try:
        creation = create.Creation(runtime, container_id, os.path.abspath(bundle), directory, spec)
    except BaseException:
        state.forget(directory)
        raise
    try:
        creation.state.save()
        if creation.seccomp is not None:  # criu brings the processes' filters; this one is for execs
            state.write_atomically(directory, state.SECCOMP_FILE, creation.seccomp.program)
        creation.manager.create()
        creation.manager.set((spec.get("linux") or {}).get("resources") or {})
        return _restore(creation, options)
    except BaseException:
        creation.undo()
        raise
    finally:
        creation.release()


def _restore(creation: Any, options: CriuOptions) -> Launched:
    if _has_terminal(creation.spec):
        return _restore_with_terminal(creation, options)
    pid_file = f"{creation.directory}/criu.pid"
    command = [options.program, "restore", "--restore-detached", "--restore-sibling", "--pidfile", pid_file]
    command += _common(options, "restore.log", creation.rootfs, creation.spec)
    # The program that restores is in the container's cgroup already, and so are its children.
    command += ["--manage-cgroups=ignore"]
    for destination, source in outside_mounts(creation.spec, creation.state.bundle, creation.manager):
        command += ["--external", f"mnt[{destination}]:{source}"]
    for number, name in enumerate(_saved_streams(options.images)):
        if name.startswith(("pipe:", "socket:", "file[")):
            command += ["--inherit-fd", f"fd[{number}]:{name}"]
    pid, pidfd = syscalls.clone(syscalls.CLONE_NEWNS)
    if pid == 0:
        _become_criu(creation, command)
    os.close(pidfd)
    _, status_word = os.waitpid(pid, 0)
    if status_word:
        raise _criu_failure("restore", options, "restore.log", status_word)
    with open(pid_file, encoding="ascii") as file:
        return _restored(creation, int(file.read()), None)


def _restore_with_terminal(creation: Any, options: CriuOptions) -> Launched:
    """criu makes the terminal anew, in the container's devpts, and sends the master."""
    from runc_py import criu_rpc

    _saved_streams(options.images)
    mounts = outside_mounts(creation.spec, creation.state.bundle, creation.manager)
    external = [f"mnt[{destination}]:{source}" for destination, source in mounts]
    flags = _flags_with_config(options, creation.spec)
    job = criu_rpc.Job(criu_rpc.RESTORE, creation.rootfs, "restore.log", external, flags)
    outcome, status_word = _by_protocol(options, job, lambda _, command: _become_criu(creation, command))
    if not outcome.done or not outcome.pid:
        raise _criu_failure("restore", options, "restore.log", status_word)
    return _restored(creation, outcome.pid, outcome.console)


def _by_protocol(
    options: CriuOptions, job: criu_rpc.Job, become: Callable[[str, list[str]], object]
) -> tuple[criu_rpc.Outcome, int]:
    """Run criu for one request: what came of it, and its ``waitpid`` status. ``become`` executes it, in a child."""
    from runc_py import criu_rpc, light

    work = options.work or options.images
    os.makedirs(work, 0o700, exist_ok=True)
    held = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (options.images, work)]
    message = criu_rpc.request(job, *held)
    ours, theirs = light.socketpair(light.SOCK_SEQPACKET)
    pid, pidfd = syscalls.clone(syscalls.CLONE_NEWNS)
    if pid == 0:
        try:
            spare = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, criu_rpc.SOCKET + 1)  # so that the copy differs
            os.dup2(spare, criu_rpc.SOCKET)
            become(options.program, [options.program, "swrk", str(criu_rpc.SOCKET)])
        finally:
            os._exit(127)
    os.close(pidfd)
    theirs.close()
    with ours:
        outcome = criu_rpc.converse(ours, message)
    for descriptor in held:
        os.close(descriptor)
    return outcome, os.waitpid(pid, 0)[1]


def _has_terminal(spec: dict[str, Any]) -> bool:
    return bool((spec.get("process") or {}).get("terminal"))


def _restored(creation: Any, restored: int, console: int | None) -> Launched:
    """Keep the record of the restored process."""
    from runc_py.runtime import Launched

    creation.pid = creation.state.pid = restored
    found = state.process_status(restored)
    creation.state.ticks = found[1] if found else 0
    creation.state.save()
    return Launched(restored, os.pidfd_open(restored), console)


def _become_criu(creation: Any, command: list[str]) -> NoReturn:
    """In a child with a mount namespace of its own: criu wants the rootfs to be a mount point."""
    try:
        syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
        syscalls.mount(creation.rootfs, creation.rootfs, "bind", syscalls.MS_BIND | syscalls.MS_REC)
        syscalls.mount(None, creation.rootfs, None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        creation.manager.enter()
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        os.execv(command[0], command)
    except BaseException as error:
        os.write(2, f"cannot run criu: {error}\n".encode())
    os._exit(127)


def _saved_streams(images: str) -> list[str]:
    try:
        with open(f"{images}/{DESCRIPTORS}", encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"{images} holds no checkpoint: {error}") from error
    return [str(name) for name in found] if isinstance(found, list) else []


def _common(options: CriuOptions, log: str, rootfs: str, spec: dict[str, Any]) -> list[str]:
    config = _config_file(spec)
    found = ["--images-dir", options.images, "--log-file", log, "-v4", "--root", rootfs, *options.flags]
    if config:
        found += ["--config", config]
    if not options.work:
        return found
    os.makedirs(options.work, 0o700, exist_ok=True)
    return [*found, "--work-dir", options.work]


def _flags_with_config(options: CriuOptions, spec: dict[str, Any]) -> list[str]:
    config = _config_file(spec)
    return [*options.flags, *(["--config", config] if config else [])]


def _config_file(spec: dict[str, Any]) -> str:
    """criu's configuration for the container; empty when there is none."""
    config = str((spec.get("annotations") or {}).get("org.criu.config") or "/etc/criu/runc.conf")
    return config if os.path.exists(config) else ""


def _spawn(command: list[str]) -> int:
    return os.posix_spawn(command[0], command, os.environ, setsigdef=_DEFAULTS, setsigmask=[])


def _criu_failure(what: str, options: CriuOptions, log: str, status_word: int) -> RuntimeFailure:
    """With criu's own last errors: its exit status says nothing."""
    path = f"{options.work or options.images}/{log}"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            errors = [line.strip() for line in file if "Error" in line]
    except OSError:
        errors = []
    code = os.waitstatus_to_exitcode(status_word)
    return RuntimeFailure(f"{what}: criu failed ({code}), see {path}: {' | '.join(errors[-5:]) or 'no error logged'}")


PASSED_ON = ("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--auto-dedup", "--lazy-pages")
"""Flags that ``checkpoint`` and ``restore`` pass on to criu unchanged."""

LABELS = ("--lsm-profile", "--lsm-mount-context")
"""Options of ``restore`` that are criu's: labels other than those of the checkpoint."""
