"""Linux capabilities by name, and the steps that give a process exactly the sets its spec lists.

Rule: a set that the spec does not list is empty. Order (capabilities(7)): bounding set while CAP_SETPCAP is effective,
``keepcaps`` across the change of user, then the three sets at once, ambient last because it needs the other two.
"""

from __future__ import annotations

from runc_py import syscalls
from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, read_file

if TYPE_CHECKING:
    from typing import Any

NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
"""Index is the capability's number."""

NUMBERS = {f"CAP_{name}": number for number, name in enumerate(NAMES)}
SYS_ADMIN = 1 << NUMBERS["CAP_SYS_ADMIN"]


class CapabilitySets:
    """The five sets of a process as bit masks."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(self, spec: dict[str, Any], usable: int) -> None:
        """``usable`` is what this process itself may use: the rest is left out, as runc does, with a warning there."""
        self.bounding = mask(spec.get("bounding")) & usable
        self.effective = mask(spec.get("effective")) & usable
        self.permitted = mask(spec.get("permitted")) & usable
        self.inheritable = mask(spec.get("inheritable")) & usable
        # The kernel wants ambient ones permitted and inheritable; runc, too, goes on without the others.
        self.ambient = mask(spec.get("ambient")) & self.permitted & self.inheritable


def mask(names: list[str] | None) -> int:
    """Bits of ``names``; names this runtime does not know are ignored, as the runtime spec asks."""
    result = 0
    for name in names or ():
        number = NUMBERS.get(name.upper())
        if number is not None:
            result |= 1 << number
    return result


def usable_now() -> int:
    """This process's bounding set and what it could gain from it: ``CapBnd`` and ``CapPrm`` of its status."""
    lines = read_file("/proc/self/status").splitlines()
    fields = dict(line.split(b":", 1) for line in lines if line.startswith(b"Cap"))
    return int(fields[b"CapBnd"], 16) & int(fields[b"CapPrm"], 16)


def drop_bounding(sets: CapabilitySets, current: int) -> None:
    """Take everything that is not in the bounding set out of it; ``current`` is the set now."""
    for number in range(64):
        if current >> number & 1 and not sets.bounding >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def apply(sets: CapabilitySets, *, keep: int = 0) -> None:
    """Effective, permitted and inheritable; ``keep`` stays permitted for a last privileged step."""
    try:
        syscalls.capset(sets.effective, sets.permitted | keep, sets.inheritable)
    except OSError as error:
        raise RuntimeFailure(f"unable to apply capabilities: {error.strerror}") from error


def finish(sets: CapabilitySets) -> None:
    """Drop what ``apply`` kept, and raise the ambient set."""
    apply(sets)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if sets.ambient >> number & 1:
            try:
                syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
            except OSError as error:
                raise RuntimeFailure(f"unable to raise ambient CAP_{NAMES[number]}: {error.strerror}") from error
