"""Capabilities of a container: Docker's default set, changed by ``--cap-add``, ``--cap-drop`` and ``--privileged``.

Rule: names are checked when a container is made, not when it starts. Source: capabilities(7), ``docker run`` reference.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from engine.spec.defaults import CAPABILITIES
from oci.errors import InvalidArgument

_WORDS = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)

NAMES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _WORDS.split())
"""By number: the capability of bit n is ``NAMES[n]``."""


@functools.cache
def available() -> tuple[str, ...]:
    """What this process could give away at most: its bounding set, in order of number."""
    with open("/proc/self/status", encoding="ascii") as file:
        bits = next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd:"))
    return tuple(name for number, name in enumerate(NAMES) if bits >> number & 1)


def normalize(names: Iterable[str], field: str) -> list[str]:
    """Upper case, with ``CAP_``; ``ALL`` stays a word of its own. ``field`` is ``CapAdd`` or ``CapDrop``."""
    result = []
    for given in names:
        name = given.upper()
        if name != "ALL" and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name == "CAP_ALL":
            name = "ALL"
        if name != "ALL" and name not in NAMES:
            raise InvalidArgument(f'invalid {field}: unknown capability: "{name}"')
        result.append(name)
    return result


def effective(add: Iterable[str] | None, drop: Iterable[str] | None, *, privileged: bool) -> list[str]:
    """The container's capabilities, in Docker's order: drops win over ``ALL``, additions over other drops."""
    added, dropped = normalize(add or (), "CapAdd"), normalize(drop or (), "CapDrop")
    if privileged:
        return list(available())
    if "ALL" in added:
        return [name for name in available() if name not in dropped]
    if "ALL" in dropped:
        kept: list[str] = []
    else:
        kept = [name for name in CAPABILITIES if name not in dropped]
    return list(dict.fromkeys(kept + added))
