"""This process, and who it is: Prometheus' ``process_*`` names and containerd's ``containerd_build_info_total``."""

from __future__ import annotations

import os
import resource

from containerd_py.metrics.exposition import Family, Sample


def families(version: str, revision: str) -> list[Family]:
    """Read from ``/proc/self`` now."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    with open("/proc/stat") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    numbers = [
        (
            "cpu_seconds_total",
            "counter",
            "User and system CPU seconds spent",
            (int(fields[11]) + int(fields[12])) / ticks,
        ),
        ("open_fds", "gauge", "Open file descriptors", len(os.listdir("/proc/self/fd"))),
        ("max_fds", "gauge", "Most file descriptors allowed", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        ("resident_memory_bytes", "gauge", "Resident memory in bytes", int(fields[21]) * page),
        ("virtual_memory_bytes", "gauge", "Virtual memory in bytes", int(fields[20])),
        (
            "start_time_seconds",
            "gauge",
            "Start of the process, seconds since the epoch",
            booted + int(fields[19]) / ticks,
        ),
    ]
    who = Sample(1, {"version": version, "revision": revision})
    return [
        Family("containerd_build_info_total", "counter", "containerd build information", [who]),
        *(Family(f"process_{name}", kind, text, [Sample(value)]) for name, kind, text, value in numbers),
    ]
