"""Usage of a container from cgroup v2 files, in the shape of ``runc events --stats``.

Rule: what v2 does not count (kernel TCP memory, swap's high-water mark on old kernels) is left out or zero.
"""

from __future__ import annotations

from runc_py.cgroups.v1_stats import integer, table, text
from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

OPERATIONS = {
    "rbytes": "Read",
    "wbytes": "Write",
    "dbytes": "Discard",
    "rios": "Read",
    "wios": "Write",
    "dios": "Discard",
}


def gather(directory: str) -> dict[str, Any]:
    """Everything the enabled controllers tell."""
    return {
        "cpu": _cpu(directory),
        "memory": _memory(directory),
        "pids": _pids(directory),
        "blkio": _io(directory),
        "hugetlb": {},
    }


def _cpu(directory: str) -> dict[str, Any]:
    rows = table(f"{directory}/cpu.stat")
    return {
        "usage": {
            "total": rows.get("usage_usec", 0) * 1000,
            "kernel": rows.get("system_usec", 0) * 1000,
            "user": rows.get("user_usec", 0) * 1000,
        },
        "throttling": {
            "periods": rows.get("nr_periods", 0),
            "throttledPeriods": rows.get("nr_throttled", 0),
            "throttledTime": rows.get("throttled_usec", 0) * 1000,
        },
    }


def _memory(directory: str) -> dict[str, Any]:
    raw = table(f"{directory}/memory.stat")
    if not raw:
        return {}
    events = table(f"{directory}/memory.events")
    usage = {
        "limit": integer(f"{directory}/memory.max"),
        "usage": integer(f"{directory}/memory.current"),
        "max": integer(f"{directory}/memory.peak"),
        "failcnt": events.get("max", 0),
    }
    swap = {
        "limit": integer(f"{directory}/memory.swap.max"),
        "usage": integer(f"{directory}/memory.swap.current"),
        "max": integer(f"{directory}/memory.swap.peak"),
        "failcnt": table(f"{directory}/memory.swap.events").get("fail", 0),
    }
    return {"cache": raw.get("file", 0), "usage": usage, "swap": swap, "raw": raw}


def _pids(directory: str) -> dict[str, int]:
    maximum = text(f"{directory}/pids.max")
    return {
        "current": integer(f"{directory}/pids.current"),
        "limit": int(maximum) if maximum.isdigit() else 0,
    }


def _io(directory: str) -> dict[str, Any]:
    stats: dict[str, list[dict[str, Any]]] = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    for line in text(f"{directory}/io.stat").splitlines():
        device, *fields = line.split()
        major, _, minor = device.partition(":")
        for field in fields:
            key, _, value = field.partition("=")
            if key not in OPERATIONS:
                continue
            target = "ioServiceBytesRecursive" if key.endswith("bytes") else "ioServicedRecursive"
            stats[target].append({"major": int(major), "minor": int(minor), "op": OPERATIONS[key], "value": int(value)})
    return stats
