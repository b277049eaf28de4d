"""From a prepared namespace to the user's program: limits, user, capabilities, working directory, ``execve``.

Rule: the same steps in the same order for init and for exec. Nothing is looked up through the C library's databases and
nothing is imported here at run time: after the change of root, both would read the container's files.
"""

from __future__ import annotations

import errno

from runc_py import capabilities, syscalls
from runc_py.errors import ProcessFailure, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os, signal, stat
from runc_py.paths import read_regular

if TYPE_CHECKING:
    from typing import Any

RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS"),
            *("SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}


class Program:
    """What ``execute`` needs: path found in the container, argv, environment."""

    __slots__ = ("arguments", "environment", "path")

    def __init__(self, path: str, arguments: list[str], environment: dict[bytes, bytes]) -> None:
        self.path = path
        self.arguments = arguments
        self.environment = environment


def reset_signals() -> None:
    """Undo what CPython and the caller changed: handlers, ignored signals (they survive execve), wake-up fd, mask."""
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if number in (signal.SIGKILL, signal.SIGSTOP) or 32 <= number <= 33:
            continue
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def use_stdio(descriptors: tuple[int, int, int]) -> None:
    """Make ``descriptors`` 0, 1 and 2, whatever numbers they have now."""
    if descriptors == (0, 1, 2):
        return
    lifted = [fd if fd > 2 else os.dup(fd) for fd in descriptors]
    while any(fd < 3 for fd in lifted):
        lifted = [fd if fd > 2 else os.dup(fd) for fd in lifted]
    for number, fd in enumerate(lifted):
        os.dup2(fd, number)


def give_stdio(uid: int, gid: int) -> None:
    """The user owns the pipes and terminals it was given, so that ``/dev/stdout`` can be opened again.

    The group goes with it, but not a terminal's: that is the host's group for terminals.
    """
    null = os.makedev(1, 3)
    for number in (0, 1, 2):
        info = os.fstat(number)
        terminal = stat.S_ISCHR(info.st_mode)
        wanted = (uid, info.st_gid if terminal else gid)
        if (info.st_uid, info.st_gid) == wanted or (terminal and info.st_rdev == null):
            continue
        try:
            os.fchown(number, *wanted)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.EROFS):
                raise


def set_rlimits(limits: list[dict[str, Any]]) -> None:
    """``process.rlimits``; raising a hard limit needs CAP_SYS_RESOURCE, and the error says so."""
    for entry in limits:
        name, soft, hard = entry["type"], int(entry["soft"]), int(entry["hard"])
        number = RLIMITS.get(name)
        if number is None:
            raise RuntimeFailure(f"process.rlimits: unknown limit {name}")
        try:
            syscalls.setrlimit(number, soft, hard)
        except OSError as error:
            current = syscalls.getrlimit(number)[1]
            hint = f" (hard limit here is {current}; raising it needs CAP_SYS_RESOURCE)" if hard != current else ""
            raise RuntimeFailure(
                f"error setting rlimits for ready process: error setting rlimit {name} to {soft}:{hard}: {error}{hint}"
            ) from error


def become(
    process: dict[str, Any], usable: int, *, userns: bool, privileges: int, keep_groups: bool = False
) -> capabilities.CapabilitySets:
    """Change to the user and capabilities of ``process``; ``privileges`` stay permitted until ``execute``.

    ``keep_groups`` adds the caller's supplementary groups to the spec's.
    """
    user = process.get("user") or {}
    sets = capabilities.CapabilitySets(process.get("capabilities") or {}, usable)
    if process.get("noNewPrivileges"):
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    uid, gid = int(user.get("uid") or 0), int(user.get("gid") or 0)
    give_stdio(uid, gid)
    capabilities.drop_bounding(sets, usable)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    groups = list(user.get("additionalGids") or [])
    try:
        os.setgroups([*groups, *os.getgroups()] if keep_groups else groups)
    except PermissionError:
        if not userns or groups:
            raise  # only an unprivileged user namespace (setgroups "deny") may keep its groups
    try:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        hint = " (not mapped in the user namespace)" if error.errno == errno.EINVAL else ""
        raise RuntimeFailure(f"cannot become user {uid}:{gid}: {error.strerror}{hint}") from error
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    # A change of uid may have set the dumpable flag again; until execve nobody may look into this process.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    capabilities.apply(sets, keep=privileges & usable)
    umask = user.get("umask")
    os.umask(0o022 if umask is None else int(umask))
    return sets


def enter_directory(cwd: str) -> None:
    """Change to ``cwd`` and make sure that it is inside the container (CVE-2024-21626)."""
    try:
        os.chdir(cwd)
    except OSError as error:
        cause = os.strerror(error.errno or 0).lower()
        raise RuntimeFailure(f'chdir to cwd ("{cwd}") set in config.json failed: {cause}') from error
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise RuntimeFailure("current working directory is outside of container mount namespace root")


def find_program(process: dict[str, Any]) -> Program:
    """Look up ``args[0]`` as Go's ``exec.LookPath`` does: its messages are what Docker's clients look for."""
    environment = _environment(process)
    name = process["args"][0]
    if "/" in name:
        problem = _not_executable(name)
        if problem:
            raise ProcessFailure(f'exec: "{name}": {problem}')
        return Program(name, process["args"], environment)
    denied = False
    for directory in os.fsdecode(environment.get(b"PATH", b"")).split(":"):
        if not directory.startswith("/"):
            continue
        path = f"{directory}/{name}"
        problem = _not_executable(path)
        if not problem:
            return Program(path, process["args"], environment)
        denied = denied or problem == "permission denied"
    if denied:
        raise ProcessFailure(f'exec: "{name}": permission denied')
    raise ProcessFailure(f'exec: "{name}": executable file not found in $PATH')


def _not_executable(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"stat {path}: {os.strerror(error.errno or 0).lower()}"
    if stat.S_ISDIR(mode):
        return "is a directory"
    return "" if os.access(path, os.X_OK, effective_ids=True) else "permission denied"


def _environment(process: dict[str, Any]) -> dict[bytes, bytes]:
    """``process.env`` (the last of equal names wins), with HOME from the container's own passwd file if it is unset."""
    environment: dict[bytes, bytes] = {}
    for item in process.get("env") or ():
        name, separator, value = os.fsencode(item).partition(b"=")
        if separator and name:
            environment[name] = value
    if not environment.get(b"HOME"):
        environment[b"HOME"] = _home(int((process.get("user") or {}).get("uid") or 0))
    return environment


def _home(uid: int) -> bytes:
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b"/"
    try:
        text = read_regular(fd)
    finally:
        os.close(fd)
    wanted = b"%d" % uid
    for line in text.splitlines():
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == wanted:
            return fields[5] or b"/"
    return b"/"


def execute(program: Program, preserve_fds: int) -> None:
    """Replace this process; returns only by raising ProcessFailure."""
    syscalls.close_range(3 + preserve_fds, flags=syscalls.CLOSE_RANGE_CLOEXEC)
    for fd in range(3, 3 + preserve_fds):
        try:
            os.set_inheritable(fd, True)
        except OSError:
            continue  # the caller promised more descriptors than it has, as runc allows
    try:
        os.execve(program.path, program.arguments, program.environment)
    except OSError as error:
        raise ProcessFailure(f"exec {program.path}: {os.strerror(error.errno or 0).lower()}") from error
