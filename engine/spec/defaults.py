"""What a container gets when nobody says otherwise: Docker's defaults, as tables.

Rule: these are facts about Docker (its documentation, ``docker run`` reference and the specs its daemon gives to
runtimes); change one only when Docker does.
"""

from __future__ import annotations

import functools
import os
from typing import Any

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CGROUP_PARENT = "/docker"
SHM_SIZE = 64 << 20

CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)


@functools.cache
def masked_paths() -> tuple[str, ...]:
    """Paths that tell too much about the host, with the thermal throttle counters of each processor it has."""
    throttles = (f"/sys/devices/system/cpu/cpu{n}/thermal_throttle" for n in range(os.cpu_count() or 1))
    return (*_MASKED_PATHS, *(path for path in throttles if os.path.exists(path)))


def mounts(shm_size: int) -> list[dict[str, Any]]:
    """The file systems every container has, outermost first; ``shm_size`` in bytes."""
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", f"size={shm_size}"),
    ]


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def device_rules() -> list[dict[str, Any]]:
    """Nothing but the harmless character devices; the runtime adds the ones it makes itself."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for allow, major, minor in (
        (True, 1, 5),  # zero
        (True, 1, 3),  # null
        (True, 1, 9),  # urandom
        (True, 1, 8),  # random
        (True, 5, 0),  # tty
        (True, 5, 1),  # console
        (False, 10, 229),  # fuse
    ):
        rules.append({"allow": allow, "type": "c", "major": major, "minor": minor, "access": "rwm"})
    return rules
