"""Task statistics as containerd's clients expect them: ``io.containerd.cgroups.v1.Metrics`` and ``…v2.Metrics``.

Rule: names and numbers are those of containerd/cgroups' metrics.proto; what the runtime does not report stays zero. The
input is the ``data`` object of ``runc events --stats``.
"""

from __future__ import annotations

import os
from typing import Any

from protos.wire import Field, Message, Values

_V2_MARK = "/sys/fs/cgroup/cgroup.controllers"


def _u64(*names: str, first: int = 1) -> list[Field]:
    return [Field(number, name, "uint64") for number, name in enumerate(names, first) if name]


_PIDS = Message("PidsStat", *_u64("current", "limit"))
_USAGE = Message("CPUUsage", *_u64("total", "kernel", "user"), Field(4, "per_cpu", "uint64", repeated=True))
_THROTTLE = Message("Throttle", *_u64("periods", "throttled_periods", "throttled_time"))
_CPU_V1 = Message("CPUStat", Field(1, "usage", _USAGE), Field(2, "throttling", _THROTTLE))
_ENTRY = Message("MemoryEntry", *_u64("limit", "usage", "max", "failcnt"))
_MEMORY_V1_NAMES = (
    "cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "hierarchical_memory_limit",
    "hierarchical_memsw_limit", "total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty",
    "total_writeback", "total_pgpgin", "total_pgpgout", "total_pgfault", "total_pgmajfault", "total_inactive_anon",
    "total_active_anon", "total_inactive_file", "total_active_file", "total_unevictable",
)  # fmt: skip
_MEMORY_V1 = Message(
    "MemoryStat", *_u64(*_MEMORY_V1_NAMES),
    *(Field(number, name, _ENTRY) for number, name in enumerate(("usage", "swap", "kernel", "kernel_tcp"), 33)),
)  # fmt: skip
_BLKIO_ENTRY = Message(
    "BlkIOEntry", Field(1, "op", "string"), Field(2, "device", "string"), *_u64("major", "minor", "value", first=3)
)
_BLKIO_NAMES = (
    "ioServiceBytesRecursive", "ioServicedRecursive", "ioQueueRecursive", "ioServiceTimeRecursive",
    "ioWaitTimeRecursive", "ioMergedRecursive", "ioTimeRecursive", "sectorsRecursive",
)  # fmt: skip
_BLKIO = Message("BlkIOStat", *(Field(n, name, _BLKIO_ENTRY, repeated=True) for n, name in enumerate(_BLKIO_NAMES, 1)))
METRICS_V1 = Message(
    "io.containerd.cgroups.v1.Metrics",
    Field(2, "pids", _PIDS),
    Field(3, "cpu", _CPU_V1),
    Field(4, "memory", _MEMORY_V1),
    Field(5, "blkio", _BLKIO),
)

_CPU_V2 = Message(
    "CPUStat", *_u64("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
)
_MEMORY_V2_NAMES = (
    "anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable",
    "slab_unreclaimable", "pgfault", "pgmajfault", "workingset_refault", "workingset_activate",
    "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree",
    "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc", "usage", "usage_limit", "swap_usage", "swap_limit",
    "max_usage",
)  # fmt: skip
_MEMORY_V2 = Message("MemoryStat", *_u64(*_MEMORY_V2_NAMES))
_IO_ENTRY = Message("IOEntry", *_u64("major", "minor", "rbytes", "wbytes", "rios", "wios"))
_IO = Message("IOStat", Field(1, "usage", _IO_ENTRY, repeated=True))
METRICS_V2 = Message(
    "io.containerd.cgroups.v2.Metrics",
    Field(1, "pids", _PIDS),
    Field(2, "cpu", _CPU_V2),
    Field(4, "memory", _MEMORY_V2),
    Field(6, "io", _IO),
)


def encode(stats: dict[str, Any]) -> Values:
    """The Any that StatsResponse carries, in the form of this host's cgroups."""
    if os.path.exists(_V2_MARK):
        return {"type_url": METRICS_V2.name, "value": METRICS_V2.encode(_v2(stats))}
    return {"type_url": METRICS_V1.name, "value": METRICS_V1.encode(_v1(stats))}


def _number(value: Any) -> int:
    """A counter that fits u64; anything else counts as zero ("max" and -1 mean no limit, which is zero here)."""
    return min(value, (1 << 64) - 1) if isinstance(value, int) and value > 0 else 0


def _pick(source: dict[str, Any], names: dict[str, str]) -> Values:
    return {ours: _number(source.get(theirs)) for ours, theirs in names.items()}


def _part(stats: dict[str, Any], *path: str) -> dict[str, Any]:
    value: Any = stats
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _v1(stats: dict[str, Any]) -> Values:
    usage = _part(stats, "cpu", "usage")
    memory = _part(stats, "memory")
    raw = _part(memory, "raw")
    entry_names = {"limit": "limit", "usage": "usage", "max": "max", "failcnt": "failcnt"}
    return {
        "pids": _pick(_part(stats, "pids"), {"current": "current", "limit": "limit"}),
        "cpu": {
            "usage": {
                **_pick(usage, {"total": "total", "kernel": "kernel", "user": "user"}),
                "per_cpu": [_number(value) for value in usage.get("percpu") or ()],
            },
            "throttling": _throttling(stats),
        },
        "memory": {
            **_pick(raw, {name: name for name in _MEMORY_V1_NAMES}),
            "usage": _pick(_part(memory, "usage"), entry_names),
            "swap": _pick(_part(memory, "swap"), entry_names),
            "kernel": _pick(_part(memory, "kernel"), entry_names),
            "kernel_tcp": _pick(_part(memory, "kernelTCP"), entry_names),
        },
        "blkio": {name: _blkio_entries(stats, name) for name in _BLKIO_NAMES},
    }


def _throttling(stats: dict[str, Any]) -> Values:
    names = {"periods": "periods", "throttled_periods": "throttledPeriods", "throttled_time": "throttledTime"}
    return _pick(_part(stats, "cpu", "throttling"), names)


def _blkio_entries(stats: dict[str, Any], name: str) -> list[Values]:
    return [
        {"op": str(entry.get("op", "")), **_pick(entry, {"major": "major", "minor": "minor", "value": "value"})}
        for entry in _part(stats, "blkio").get(name) or ()
    ]


def _v2(stats: dict[str, Any]) -> Values:
    usage = _part(stats, "cpu", "usage")
    throttling = _throttling(stats)
    memory = _part(stats, "memory")
    raw = _part(memory, "raw")
    direct = {name: name for name in _MEMORY_V2_NAMES if name in raw}
    return {
        "pids": _pick(_part(stats, "pids"), {"current": "current", "limit": "limit"}),
        "cpu": {
            "usage_usec": _number(usage.get("total")) // 1000,
            "user_usec": _number(usage.get("user")) // 1000,
            "system_usec": _number(usage.get("kernel")) // 1000,
            "nr_periods": throttling["periods"],
            "nr_throttled": throttling["throttled_periods"],
            "throttled_usec": throttling["throttled_time"] // 1000,
        },
        "memory": {
            **_pick(raw, direct),
            **_pick(_part(memory, "usage"), {"usage": "usage", "usage_limit": "limit", "max_usage": "max"}),
            **_pick(_part(memory, "swap"), {"swap_usage": "usage", "swap_limit": "limit"}),
        },
        "io": {"usage": _io_entries(stats)},
    }


def _io_entries(stats: dict[str, Any]) -> list[Values]:
    """Per device: bytes and operations of reads and writes, folded from the v1 shape that runc reports."""
    devices: dict[tuple[int, int], Values] = {}
    for source, read, write in (
        ("ioServiceBytesRecursive", "rbytes", "wbytes"),
        ("ioServicedRecursive", "rios", "wios"),
    ):
        for entry in _blkio_entries(stats, source):
            key = (entry["major"], entry["minor"])
            device = devices.setdefault(key, {"major": key[0], "minor": key[1]})
            name = {"read": read, "write": write}.get(entry["op"].lower())
            if name is not None:
                device[name] = entry["value"]
    return list(devices.values())
