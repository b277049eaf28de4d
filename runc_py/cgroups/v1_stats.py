"""Usage of a container from cgroup v1 files, in the shape of ``runc events --stats``.

Rule: a controller that is not mounted, and a file this kernel does not have, leave zeros; they are no errors.
"""

from __future__ import annotations

from runc_py.cgroups.base import read
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNLIMITED = 0xFFFFFFFFFFFFFFFF
"""What the JSON shows for "no limit" where the file has a word instead of a number."""

BLKIO_FILES = {
    "ioServiceBytesRecursive": ("blkio.throttle.io_service_bytes_recursive", "blkio.bfq.io_service_bytes_recursive"),
    "ioServicedRecursive": ("blkio.throttle.io_serviced_recursive", "blkio.bfq.io_serviced_recursive"),
}


def text(path: str) -> str:
    """A file's text, "" when it cannot be read."""
    try:
        return read(path)
    except OSError:
        return ""


def integer(path: str) -> int:
    """A file's number; "max" is ``UNLIMITED``, nothing is 0."""
    value = text(path)
    if value == "max":
        return UNLIMITED
    return int(value) if value.lstrip("-").isdigit() else 0


def table(path: str) -> dict[str, int]:
    """A file of ``key value`` lines."""
    rows = (line.split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def gather(paths: Mapping[str, str]) -> dict[str, Any]:
    """Everything the mounted controllers tell."""
    stats: dict[str, Any] = {"cpu": _cpu(paths), "memory": {}, "pids": {}, "blkio": {}, "hugetlb": {}}
    if directory := paths.get("memory"):
        stats["memory"] = _memory(directory)
    if directory := paths.get("pids"):
        maximum = integer(f"{directory}/pids.max")
        stats["pids"] = {
            "current": integer(f"{directory}/pids.current"),
            "limit": 0 if maximum == UNLIMITED else maximum,
        }
    if directory := paths.get("blkio"):
        stats["blkio"] = _blkio(directory)
    return stats


def _cpu(paths: Mapping[str, str]) -> dict[str, Any]:
    usage: dict[str, Any] = {"total": 0, "kernel": 0, "user": 0}
    if directory := paths.get("cpuacct"):
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        ticks = table(f"{directory}/cpuacct.stat")
        usage = {
            "total": integer(f"{directory}/cpuacct.usage"),
            "percpu": [int(value) for value in text(f"{directory}/cpuacct.usage_percpu").split()],
            "kernel": ticks.get("system", 0) * tick,
            "user": ticks.get("user", 0) * tick,
        }
    throttling = {}
    if directory := paths.get("cpu"):
        rows = table(f"{directory}/cpu.stat")
        throttling = {
            "periods": rows.get("nr_periods", 0),
            "throttledPeriods": rows.get("nr_throttled", 0),
            "throttledTime": rows.get("throttled_time", 0),
        }
    return {"usage": usage, "throttling": throttling}


def _memory_entry(directory: str, kind: str) -> dict[str, int]:
    prefix = f"{directory}/memory.{kind}"
    return {
        "limit": integer(f"{prefix}limit_in_bytes"),
        "usage": integer(f"{prefix}usage_in_bytes"),
        "max": integer(f"{prefix}max_usage_in_bytes"),
        "failcnt": integer(f"{prefix}failcnt"),
    }


def _memory(directory: str) -> dict[str, Any]:
    raw = table(f"{directory}/memory.stat")
    return {
        "cache": raw.get("cache", 0),
        "usage": _memory_entry(directory, ""),
        "swap": _memory_entry(directory, "memsw."),
        "kernel": _memory_entry(directory, "kmem."),
        "kernelTCP": _memory_entry(directory, "kmem.tcp."),
        "raw": raw,
    }


def _blkio(directory: str) -> dict[str, Any]:
    stats = {}
    for key, files in BLKIO_FILES.items():
        rows = next((content for file in files if (content := text(f"{directory}/{file}"))), "")
        stats[key] = [
            {"major": int(major), "minor": int(minor), "op": operation, "value": int(value)}
            for device, operation, value in (line.split() for line in rows.splitlines() if line.count(" ") == 2)
            for major, minor in [device.split(":")]
        ]
    return stats
