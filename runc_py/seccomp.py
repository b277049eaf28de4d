"""System call filters: the OCI ``linux.seccomp`` object becomes a BPF program, once per profile.

Rule: compiling (libseccomp) and installing (one system call) are apart. A profile seen before is read from the cache,
so that the usual container start touches neither libseccomp nor its names. Sources: runtime-spec
``config-linux.md#seccomp``, seccomp(2).
"""

from __future__ import annotations

from runc_py import documents, light
from runc_py import foreign as ctypes
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:  # hashlib itself would load OpenSSL
        from _sha2 import sha256
    except ImportError:
        from _sha256 import sha256
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FORMAT = 1
"""Part of every cache key: raise it when the same profile compiles to another program."""

SET_MODE_FILTER = 1
FLAGS: dict[str, int] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
NEW_LISTENER = 8
MAX_INSTRUCTIONS = 4096
NUMBERS = {
    "x86_64": 317,
    "aarch64": 277,
    "riscv64": 277,
    "loongarch64": 277,
    "ppc64le": 358,
    "s390x": 348,
    "armv7l": 383,
}

_memory: dict[str, bytes] = {}
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc["syscall"]
_syscall.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
_syscall.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def compile_filter(profile: Mapping[str, Any], cache_dir: str | None = None) -> bytes:
    """The BPF program of a profile, from memory, from ``cache_dir``, or compiled and then kept in both.

    Calls that this machine does not know are left out, as in runc. Raises InvalidSpec for a wrong profile,
    RuntimeFailure when libseccomp is missing. An unwritable cache directory is no error: the program is only compiled
    again next time.
    """
    key = digest(profile)
    program = _memory.get(key)
    if program is None:
        path = None if cache_dir is None else f"{cache_dir}/{key}.bpf"
        program = _load(path) if path is not None else None
        if program is None:
            from runc_py.libseccomp import compile_profile

            program = compile_profile(profile)
            if path is not None:
                _store(path, program)
        _memory[key] = program
    return program


def digest(profile: Mapping[str, Any]) -> str:
    """The cache key: profile, machine and format, in hex."""
    text = documents.dumps([FORMAT, os.uname().machine, profile], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def _load(path: str) -> bytes | None:
    """A cached program; None when there is none, or when it is not whole (its own digest comes first)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        content = os.read(fd, 32 + 8 * MAX_INSTRUCTIONS)
    finally:
        os.close(fd)
    program = content[32:]
    ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return program if ours and program and sha256(program).digest() == content[:32] else None


def _store(path: str, program: bytes) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, sha256(program).digest() + program)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        return


def flags_of(profile: Mapping[str, Any]) -> int:
    """The flags for ``install``. Without a list, speculation mitigations are left off as in runc (``SPEC_ALLOW``)."""
    names = profile.get("flags")
    if names is None:
        return FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    value = 0
    for name in names:
        if name not in FLAGS:
            raise InvalidSpec(f'linux.seccomp.flags: unknown flag "{name}": known are {", ".join(FLAGS)}')
        value |= FLAGS[name]
    return value


def needs_listener(profile: Mapping[str, Any]) -> bool:
    """Whether some call is decided by another process (``SCMP_ACT_NOTIFY``), which needs ``install(listener=True)``."""
    return any(call.get("action") == "SCMP_ACT_NOTIFY" for call in profile.get("syscalls") or ())


def listener_of(profile: Mapping[str, Any]) -> str:
    """The checked ``listenerPath``; "" when there is none. Raises InvalidSpec."""
    if profile.get("defaultAction") == "SCMP_ACT_NOTIFY":
        raise InvalidSpec("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default action")
    path = profile.get("listenerPath") or ""
    if needs_listener(profile) and not path:
        raise InvalidSpec("linux.seccomp.listenerPath: must be set for SCMP_ACT_NOTIFY")
    for index, call in enumerate(profile.get("syscalls") or ()):
        if call.get("action") == "SCMP_ACT_NOTIFY" and "write" in (call.get("names") or ()):
            # The runtime writes between installing the filter and giving the agent its descriptor.
            raise InvalidSpec(f"linux.seccomp.syscalls[{index}]: SCMP_ACT_NOTIFY cannot be used for write")
    return str(path)


def hand_to_agent(path: str, listener: int, metadata: str, pid: int, state: Mapping[str, Any]) -> None:
    """Give the agent at ``path`` the notification descriptor, as runtime-spec's "container process state" has it."""
    message = {
        "ociVersion": "0.2.0",  # of the container process state, not of the spec
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": metadata,
        "state": dict(state),
    }
    try:
        with light.open_socket(light.AF_UNIX, light.SOCK_STREAM) as agent:
            agent.connect(path)
            light.send_fds(agent, documents.dumps(message).encode(), [listener])
    except OSError as error:
        raise RuntimeFailure(f"linux.seccomp.listenerPath: no agent answers on {path}: {error.strerror}") from error


def install(program: bytes, flags: int = 0, *, listener: bool = False) -> int | None:
    """Filter the system calls of this process from now on, for good; the listener's descriptor when one was asked for.

    Needs ``no_new_privs`` or CAP_SYS_ADMIN. Imports nothing and opens nothing: it may run inside a container's root.
    Flags that an older kernel does not know are dropped, except those that change what the filter allows.
    """
    number = NUMBERS.get(_machine)
    if number is None:
        raise RuntimeFailure(f"seccomp: the number of this system call on {_machine} is not known")
    buffer = ctypes.create_string_buffer(program, len(program))
    structure = _Program(len(program) // 8, ctypes.addressof(buffer))
    if listener:
        flags |= NEW_LISTENER
        flags &= ~FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]  # the two exclude each other, and there is one thread
    for attempt in (flags, flags & ~FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]):
        result = int(_syscall(number, SET_MODE_FILTER, attempt, ctypes.addressof(structure)))
        if result >= 0:
            return result if listener else None
        if ctypes.get_errno() != 22:
            break
    code = ctypes.get_errno()
    raise RuntimeFailure(f"seccomp: cannot install a filter of {len(program) // 8} instructions: {os.strerror(code)}")


_machine = os.uname().machine
