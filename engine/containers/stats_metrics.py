"""From a task's metrics (cgroup v1 or v2 message) to Docker's ``StatsResponse`` parts.

Rule: pure decoding and renaming; what the kernel does not report is zero or null, as Docker has it. Sources:
containerd/cgroups' metrics.proto, Docker Engine API (``ContainerStatsResponse``).
"""

from __future__ import annotations

from typing import Any

from protos.cgroup_metrics import BLKIO_NAMES, MEMORY_V1_NAMES, MEMORY_V2_NAMES, METRICS_V1, METRICS_V2, V1, V2


def _cpu(total: int, kernel: int, user: int, throttling: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "cpu_usage": {"total_usage": total, "usage_in_kernelmode": kernel, "usage_in_usermode": user},
        "throttling_data": dict(zip(("periods", "throttled_periods", "throttled_time"), throttling, strict=True)),
    }


def _pids(values: dict[str, Any]) -> dict[str, int]:
    pids = values.get("pids") or {}
    return {k: v for k in ("current", "limit") if (v := pids.get(k, 0))}


def _limit(value: int, machine: int) -> int:
    return value if 0 < value < machine else machine


def decode(type_url: str, data: bytes, machine_memory: int) -> dict[str, Any]:
    """``cpu_stats``, ``memory_stats``, ``blkio_stats`` and ``pids_stats`` of one sample."""
    name = type_url.rpartition("/")[2]
    if name == V1:
        return _from_v1(METRICS_V1.decode(data), machine_memory)
    if name == V2:
        return _from_v2(METRICS_V2.decode(data), machine_memory)
    return {"cpu_stats": _cpu(0, 0, 0, (0, 0, 0)), "memory_stats": {}, "blkio_stats": _blkio({}), "pids_stats": {}}


def _blkio(lists: dict[str, Any]) -> dict[str, Any]:
    return {name: lists.get(name) for name in BLKIO_NAMES}


def _from_v1(values: dict[str, Any], machine_memory: int) -> dict[str, Any]:
    cpu, memory = values.get("cpu") or {}, values.get("memory") or {}
    usage, throttle, entry = cpu.get("usage") or {}, cpu.get("throttling") or {}, memory.get("usage") or {}
    counted = (throttle.get("periods", 0), throttle.get("throttled_periods", 0), throttle.get("throttled_time", 0))
    shown = _cpu(usage.get("total", 0), usage.get("kernel", 0), usage.get("user", 0), counted)
    if usage.get("per_cpu"):
        shown["cpu_usage"]["percpu_usage"] = list(usage["per_cpu"])
    blkio = values.get("blkio") or {}
    return {
        "pids_stats": _pids(values),
        "cpu_stats": shown,
        "memory_stats": {
            "usage": entry.get("usage", 0),
            "max_usage": entry.get("max", 0),
            "stats": {name: memory.get(name, 0) for name in MEMORY_V1_NAMES},
            **({"failcnt": entry["failcnt"]} if entry.get("failcnt") else {}),
            "limit": _limit(entry.get("limit", 0), machine_memory),
        },
        "blkio_stats": _blkio({name: [_entry(e) for e in blkio.get(name) or ()] for name in BLKIO_NAMES}),
    }


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: entry.get(k, d) for k, d in (("major", 0), ("minor", 0), ("op", ""), ("value", 0))}


def _from_v2(values: dict[str, Any], machine_memory: int) -> dict[str, Any]:
    cpu, memory = values.get("cpu") or {}, values.get("memory") or {}
    counted = (cpu.get("nr_periods", 0), cpu.get("nr_throttled", 0), cpu.get("throttled_usec", 0) * 1000)
    total, kernel, user = (cpu.get(f"{name}_usec", 0) * 1000 for name in ("usage", "system", "user"))
    devices = (values.get("io") or {}).get("usage") or ()
    transfers = [
        {"major": d.get("major", 0), "minor": d.get("minor", 0), "op": op, "value": d.get(key, 0)}
        for d in devices
        for op, key in (("read", "rbytes"), ("write", "wbytes"))
    ]
    return {
        "pids_stats": _pids(values),
        "cpu_stats": _cpu(total, kernel, user, counted),
        "memory_stats": {
            "usage": memory.get("usage", 0),
            "stats": {name: memory.get(name, 0) for name in MEMORY_V2_NAMES},
            "limit": _limit(memory.get("usage_limit", 0), machine_memory),
        },
        "blkio_stats": _blkio({"io_service_bytes_recursive": transfers} if transfers else {}),
    }


def parse_net_dev(text: str) -> dict[str, dict[str, int]]:
    """``networks`` from ``/proc/<pid>/net/dev``, without the loopback interface."""
    names = ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped")
    found = {}
    for line in text.splitlines()[2:]:
        interface, _, counters = line.partition(":")
        fields = counters.split()
        if interface.strip() != "lo" and len(fields) >= 12:
            numbers = [int(fields[i]) for i in (0, 1, 2, 3, 8, 9, 10, 11)]
            found[interface.strip()] = dict(zip(names, numbers, strict=True))
    return found


def system_cpu(text: str, ticks_per_second: int) -> int:
    """Nanoseconds of all processors since boot, from ``/proc/stat``."""
    fields = text.split("\n", 1)[0].split()
    return sum(int(field) for field in fields[1:8]) * 1_000_000_000 // ticks_per_second
