"""``HostConfig``'s limits as OCI ``linux.resources``.

Rule: only what was asked for is in the result: 0, "" and None mean nothing was asked. Sizes in bytes, times in
microseconds. Source: Docker Engine API (``Resources``), runtime-spec ``config-linux.md``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Any

from engine.containers.config import HostConfig, ThrottleDevice, WeightDevice
from oci.errors import InvalidArgument

CFS_PERIOD = 100_000
MEMORY_SWAP_FILE = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
UNIFIED_FILE = "/sys/fs/cgroup/cgroup.controllers"


def build(host: HostConfig) -> dict[str, Any]:
    """The object without ``devices``."""
    resources: dict[str, Any] = {}
    for name, section in (("memory", memory(host)), ("cpu", cpu(host)), ("blockIO", block_io(host))):
        if section:
            resources[name] = section
    if host.pids_limit is not None:
        resources["pids"] = {"limit": host.pids_limit if host.pids_limit > 0 else -1}
    return resources


def memory(host: HostConfig) -> dict[str, Any]:
    """A memory limit without a swap limit allows as much swap again, as Docker does where the kernel counts swap."""
    section: dict[str, Any] = {}
    if host.memory > 0:
        section["limit"] = host.memory
    if host.memory_reservation > 0:
        section["reservation"] = host.memory_reservation
    if host.memory_swap > 0:
        section["swap"] = host.memory_swap
    elif host.memory > 0 and host.memory_swap == 0 and _counts_swap():
        section["swap"] = 2 * host.memory
    if host.memory_swappiness is not None and host.memory_swappiness >= 0:
        section["swappiness"] = host.memory_swappiness
    if host.oom_kill_disable:
        section["disableOOMKiller"] = True
    if host.kernel_memory_tcp > 0:
        section["kernelTCP"] = host.kernel_memory_tcp
    return section


def _counts_swap() -> bool:
    return os.path.exists(UNIFIED_FILE) or os.path.exists(MEMORY_SWAP_FILE)


def cpu(host: HostConfig) -> dict[str, Any]:
    """``--cpus`` becomes a quota of the default period."""
    if host.cpu_shares < 0:
        raise InvalidArgument(f"invalid CPU shares ({host.cpu_shares}): value must be a positive integer")
    section: dict[str, Any] = {}
    if host.nano_cpus > 0:
        section["period"] = CFS_PERIOD
        section["quota"] = host.nano_cpus * CFS_PERIOD // 1_000_000_000
    for key, value in (
        ("shares", host.cpu_shares),
        ("cpus", host.cpuset_cpus),
        ("mems", host.cpuset_mems),
        ("period", host.cpu_period),
        ("quota", host.cpu_quota),
        ("realtimePeriod", host.cpu_realtime_period),
        ("realtimeRuntime", host.cpu_realtime_runtime),
    ):
        if value:
            section[key] = value
    return section


def block_io(host: HostConfig) -> dict[str, Any]:
    """Weights and throttles; devices are named by path and told to the kernel by number."""
    section: dict[str, Any] = {}
    if host.blkio_weight:
        section["weight"] = host.blkio_weight
    if host.blkio_weight_device:
        section["weightDevice"] = [_weight(entry) for entry in host.blkio_weight_device]
    for key, entries in (
        ("throttleReadBpsDevice", host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops),
    ):
        if entries:
            section[key] = _throttles(entries)
    return section


def _weight(entry: WeightDevice) -> dict[str, int]:
    return {**_block_device(entry.path), "weight": entry.weight}


def _throttles(entries: Iterable[ThrottleDevice]) -> list[dict[str, int]]:
    return [{**_block_device(entry.path), "rate": entry.rate} for entry in entries]


def _block_device(path: str) -> dict[str, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InvalidArgument(f"cannot limit block device {path!r}: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidArgument(f"cannot limit {path!r}: it is not a block device")
    return {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
