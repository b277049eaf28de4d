"""``io.containerd.cgroups.v1.Metrics`` and ``…v2.Metrics``: what a task's statistics look like on the wire.

Rule: field names and numbers are those of containerd/cgroups' metrics.proto.
"""

from __future__ import annotations

from protos.wire import Field, Message

V1, V2 = "io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"


def _u64(names: str, first: int = 1) -> list[Field]:
    return [Field(number, name, "uint64") for number, name in enumerate(names.split(), first)]


_PIDS = Message("PidsStat", *_u64("current limit"))
_USAGE = Message("CPUUsage", *_u64("total kernel user"), Field(4, "per_cpu", "uint64", repeated=True))
_THROTTLE = Message("Throttle", *_u64("periods throttled_periods throttled_time"))
_CPU_V1 = Message("CPUStat", Field(1, "usage", _USAGE), Field(2, "throttling", _THROTTLE))
_ENTRY = Message("MemoryEntry", *_u64("limit usage max failcnt"))
_MEMORY_V1_TEXT = (
    "cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault pgmajfault inactive_anon active_anon "
    "inactive_file active_file unevictable hierarchical_memory_limit hierarchical_memsw_limit total_cache total_rss "
    "total_rss_huge total_mapped_file total_dirty total_writeback total_pgpgin total_pgpgout total_pgfault "
    "total_pgmajfault total_inactive_anon total_active_anon total_inactive_file total_active_file total_unevictable"
)
MEMORY_V1_NAMES = tuple(_MEMORY_V1_TEXT.split())
"""The counters of ``memory.stat``."""
MEMORY_V1_ENTRIES = ("usage", "swap", "kernel", "kernel_tcp")
"""The limited resources of the memory controller."""
_MEMORY_V1 = Message(
    "MemoryStat",
    *_u64(_MEMORY_V1_TEXT),
    *(Field(number, name, _ENTRY) for number, name in enumerate(MEMORY_V1_ENTRIES, 33)),
)
_BLKIO_ENTRY = Message(
    "BlkIOEntry", Field(1, "op", "string"), Field(2, "device", "string"), *_u64("major minor value", first=3)
)
BLKIO_NAMES = (
    "io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive", "io_service_time_recursive",
    "io_wait_time_recursive", "io_merged_recursive", "io_time_recursive", "sectors_recursive",
)  # fmt: skip
_BLKIO = Message("BlkIOStat", *(Field(n, name, _BLKIO_ENTRY, repeated=True) for n, name in enumerate(BLKIO_NAMES, 1)))
METRICS_V1 = Message(
    V1, Field(2, "pids", _PIDS), Field(3, "cpu", _CPU_V1), Field(4, "memory", _MEMORY_V1), Field(5, "blkio", _BLKIO)
)

CPU_V2_NAMES = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
_CPU_V2 = Message("CPUStat", *_u64(" ".join(CPU_V2_NAMES)))
_MEMORY_V2_TEXT = (
    "anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp inactive_anon active_anon "
    "inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault pgmajfault workingset_refault "
    "workingset_activate workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree "
    "pglazyfreed thp_fault_alloc thp_collapse_alloc"
)
MEMORY_V2_NAMES = tuple(_MEMORY_V2_TEXT.split())
"""The counters of ``memory.stat``."""
_MEMORY_V2 = Message("MemoryStat", *_u64(f"{_MEMORY_V2_TEXT} usage usage_limit swap_usage swap_limit max_usage"))
_IO_ENTRY = Message("IOEntry", *_u64("major minor rbytes wbytes rios wios"))
_IO = Message("IOStat", Field(1, "usage", _IO_ENTRY, repeated=True))
_EVENTS = Message("MemoryEvents", *_u64("low high max oom oom_kill"))
METRICS_V2 = Message(
    V2,
    Field(1, "pids", _PIDS),
    Field(2, "cpu", _CPU_V2),
    Field(4, "memory", _MEMORY_V2),
    Field(6, "io", _IO),
    Field(8, "memory_events", _EVENTS),
)
