"""``linux.resources`` in terms of cgroup v1 files: one table row per controller.

Rule: the order of writes is part of the meaning (memory before swap, period before quota); each row keeps its own.
Sources: kernel ``Documentation/admin-guide/cgroup-v1``, runtime-spec ``config-linux.md``.
"""

from __future__ import annotations

from runc_py.cgroups.base import CgroupError, in_user_namespace, read, write
from runc_py.cgroups.devices import legacy_orders, play
from runc_py.cgroups.limits import Section, device_number, memory_and_swap, number, shares_of
from runc_py.light import TYPE_CHECKING, NamedTuple, os

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

ZERO_COUNTS = ("swappiness", "idle")
"""Fields whose zero is a value: everywhere else runtimes take 0 for absent."""


class Limit(NamedTuple):
    """The fields ``keys`` of ``linux.resources.<section>`` (all when empty) that ``write(directory, values)`` sets."""

    controller: str
    section: str
    keys: tuple[str, ...]
    write: Callable[[str, Section], None]

    def asked(self, resources: Mapping[str, Any]) -> Section:
        """The fields of this row that a resources object sets."""
        section = resources.get(self.section)
        if not section:
            return {}
        if isinstance(section, list):
            return {"": section}
        return {
            key: value
            for key, value in section.items()
            if (value or (value is not None and key in ZERO_COUNTS)) and (not self.keys or key in self.keys)
        }


def set_devices(directory: str, rules: Sequence[Mapping[str, Any]]) -> None:
    """Bring ``devices.list`` to what the rules and the default devices say."""
    if in_user_namespace():
        return
    try:
        current = read(f"{directory}/devices.list")
    except OSError as error:
        raise CgroupError(f"cgroup: cannot read {directory}/devices.list: {os.strerror(error.errno or 0)}") from error
    orders = legacy_orders(current, play(rules))
    while orders:
        file = orders[0][0]
        same = next((at for at, order in enumerate(orders) if order[0] != file), len(orders))
        write(f"{directory}/{file}", *[order for _, order in orders[:same]])
        orders = orders[same:]


def set_memory(directory: str, memory: Section) -> None:
    """Limits in bytes. Raising needs swap first, lowering needs memory first: swap is never below memory."""
    limit, swap = memory_and_swap(memory)
    orders = [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", swap)]
    if limit and swap:
        current = int(read(f"{directory}/memory.limit_in_bytes"))
        if swap == -1 or current < swap:
            orders.reverse()
        if limit != -1 and current > 1 << 60:
            orders.sort()  # a fresh cgroup: nothing is limited, so memory goes first
    for file, value in orders:
        if value:
            write(f"{directory}/{file}", value)
    if reservation := number(memory, "reservation"):
        write(f"{directory}/memory.soft_limit_in_bytes", reservation)
    if tcp := number(memory, "kernelTCP"):
        write(f"{directory}/memory.kmem.tcp.limit_in_bytes", tcp)
    if memory.get("disableOOMKiller"):
        write(f"{directory}/memory.oom_control", 1)


def set_swappiness(directory: str, memory: Section) -> None:
    """0 … 100; 0 is a value of its own here."""
    value = number(memory, "swappiness")
    if not 0 <= value <= 100:
        raise CgroupError(f"invalid memory swappiness value: {value} (valid range is 0-100)")
    write(f"{directory}/memory.swappiness", value)


def set_cpu(directory: str, cpu: Section) -> None:
    """Real time, shares, then bandwidth: the kernel refuses a period that the present quota does not fit in."""
    for key, file in (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us")):
        if value := number(cpu, key):
            write(f"{directory}/{file}", value)
    if shares := shares_of(cpu):
        write(f"{directory}/cpu.shares", shares)
    period, quota, burst = number(cpu, "period"), number(cpu, "quota"), number(cpu, "burst")
    late_period = False
    if period:
        try:
            write(f"{directory}/cpu.cfs_period_us", period)
        except CgroupError:
            if not quota:
                raise
            late_period = True
    if quota:
        write(f"{directory}/cpu.cfs_quota_us", quota)
    if late_period:
        write(f"{directory}/cpu.cfs_period_us", period)
    if burst:
        write(f"{directory}/cpu.cfs_burst_us", burst)
    if "idle" in cpu:
        write(f"{directory}/cpu.idle", number(cpu, "idle"))


def set_cpuset(directory: str, cpu: Section) -> None:
    """Lists such as ``0-2,7``."""
    for key in ("cpus", "mems"):
        if value := cpu.get(key):
            write(f"{directory}/cpuset.{key}", value)


def set_pids(directory: str, pids: Section) -> None:
    """The largest number of tasks."""
    limit = number(pids, "limit")
    write(f"{directory}/pids.max", limit if limit > 0 else "max")


def set_blkio(directory: str, block: Section) -> None:
    """Weights go to whichever scheduler offers them; throttles are per device in bytes or operations a second."""
    scheduler = "bfq." if not os.path.exists(f"{directory}/blkio.weight") else ""
    for key, file in (("weight", f"blkio.{scheduler}weight"), ("leafWeight", "blkio.leaf_weight")):
        if value := number(block, key):
            write(f"{directory}/{file}", value)
    for entry in block.get("weightDevice") or ():
        for key, file in (("weight", f"blkio.{scheduler}weight_device"), ("leafWeight", "blkio.leaf_weight_device")):
            if value := number(entry, key):
                write(f"{directory}/{file}", f"{device_number(entry)} {value}")
    for key, file in (
        ("throttleReadBpsDevice", "read_bps_device"),
        ("throttleWriteBpsDevice", "write_bps_device"),
        ("throttleReadIOPSDevice", "read_iops_device"),
        ("throttleWriteIOPSDevice", "write_iops_device"),
    ):
        for entry in block.get(key) or ():
            write(f"{directory}/blkio.throttle.{file}", f"{device_number(entry)} {number(entry, 'rate')}")


def set_hugetlb(directory: str, limits: Section) -> None:
    """Bytes of huge pages by page size; the reservation limit too where the kernel has it."""
    for entry in limits[""]:
        size, value = entry["pageSize"], number(entry, "limit")
        write(f"{directory}/hugetlb.{size}.limit_in_bytes", value)
        reserved = f"{directory}/hugetlb.{size}.rsvd.limit_in_bytes"
        if os.path.exists(reserved):
            write(reserved, value)


def set_net_cls(directory: str, network: Section) -> None:
    """The traffic class of the container's sockets."""
    write(f"{directory}/net_cls.classid", number(network, "classID"))


def set_net_prio(directory: str, network: Section) -> None:
    """Priorities by interface."""
    for entry in network["priorities"]:
        write(f"{directory}/net_prio.ifpriomap", f"{entry['name']} {number(entry, 'priority')}")


def set_rdma(directory: str, devices: Section) -> None:
    """Handles and objects by device."""
    for device, limit in devices.items():
        parts = [
            f"{file}={number(limit, key)}"
            for key, file in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if limit.get(key) is not None
        ]
        write(f"{directory}/rdma.max", " ".join([device, *parts]))


MEMORY_KEYS = ("limit", "swap", "reservation", "kernelTCP", "disableOOMKiller")
CPU_KEYS = ("realtimePeriod", "realtimeRuntime", "shares", "period", "quota", "burst", "idle")

LIMITS: tuple[Limit, ...] = (
    Limit("memory", "memory", MEMORY_KEYS, set_memory),
    Limit("memory", "memory", ("swappiness",), set_swappiness),
    Limit("cpu", "cpu", CPU_KEYS, set_cpu),
    Limit("cpuset", "cpu", ("cpus", "mems"), set_cpuset),
    Limit("pids", "pids", (), set_pids),
    Limit("blkio", "blockIO", (), set_blkio),
    Limit("hugetlb", "hugepageLimits", (), set_hugetlb),
    Limit("net_cls", "network", ("classID",), set_net_cls),
    Limit("net_prio", "network", ("priorities",), set_net_prio),
    Limit("rdma", "rdma", (), set_rdma),
)
