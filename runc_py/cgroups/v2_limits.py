"""``linux.resources`` in terms of cgroup v2 files.

Rule: v1 notions are converted where runtimes agree on a conversion (shares, swap, weights), ignored where v2 made them
meaningless (swappiness, kernel memory), and refused where the user would otherwise get less than asked for.
Sources: kernel ``cgroup-v2.rst``, runtime-spec ``config-linux.md``.
"""

from __future__ import annotations

import math

from runc_py.cgroups.base import CgroupError, in_user_namespace, read, write
from runc_py.cgroups.devices import play
from runc_py.cgroups.limits import Section, device_number, memory_and_swap, number, section, shares_of
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def apply_limits(directory: str, resources: Mapping[str, Any]) -> None:
    """Write everything a resources object sets; ``unified`` comes last, because it is the user's own word."""
    if (rules := resources.get("devices")) is not None:
        set_devices(directory, rules)
    if memory := section(resources, "memory"):
        set_memory(directory, memory)
    if cpu := section(resources, "cpu"):
        set_cpu(directory, cpu)
    if limit := number(section(resources, "pids"), "limit"):
        write(f"{directory}/pids.max", limit if limit > 0 else "max")
    if block := section(resources, "blockIO"):
        set_io(directory, block)
    for entry in resources.get("hugepageLimits") or ():
        prefix = f"{directory}/hugetlb.{entry['pageSize']}"
        write(f"{prefix}.max", number(entry, "limit"))
        if os.path.exists(f"{prefix}.rsvd.max"):
            write(f"{prefix}.rsvd.max", number(entry, "limit"))
    for device, limits in section(resources, "rdma").items():
        set_rdma(directory, device, limits)
    if any(section(resources, "network").values()):
        raise CgroupError("linux.resources.network needs cgroup v1: v2 has no net_cls and net_prio")
    set_unified(directory, section(resources, "unified"))


def set_devices(directory: str, rules: list[Mapping[str, Any]]) -> None:
    """Attach the device program. In a user namespace nobody may, and device nodes cannot be made there anyway."""
    if in_user_namespace():
        return
    from runc_py.bpf import attach_device_program

    access = play(rules)
    try:
        attach_device_program(directory, access)
    except OSError as error:
        raise CgroupError(f"cgroup: cannot attach the device program to {directory}: {error.strerror}") from error


def text_of(value: int) -> str:
    """A limit as v2 writes it."""
    return "max" if value < 0 else str(value)


def set_memory(directory: str, memory: Section) -> None:
    """``swap`` counts memory plus swap in the spec and swap alone in v2. Raising and lowering need no order here."""
    limit, swap = memory_and_swap(memory)
    if memory.get("checkBeforeUpdate") and limit > 0:
        _check_usage(directory, limit)
    if swap:
        if swap > 0 and limit <= 0:
            raise CgroupError("linux.resources.memory.swap cannot be set without a memory limit")
        own = swap if swap < 0 else swap - limit
        path = f"{directory}/memory.swap.max"
        if own > 0 or os.path.exists(path):
            write(path, text_of(own))
    if limit:
        write(f"{directory}/memory.max", text_of(limit))
    if reservation := number(memory, "reservation"):
        write(f"{directory}/memory.low", text_of(reservation))


def _check_usage(directory: str, limit: int) -> None:
    usage = int(read(f"{directory}/memory.current"))
    if usage > limit:
        raise CgroupError(f"cgroup: memory limit {limit} is below the present usage {usage} of {directory}")


def weight_of_shares(shares: int) -> int:
    """``cpu.weight`` (1 … 10000) for v1 shares: a curve through (2, 1), (1024, 100), (262144, 10000).

    The straight line that older runtimes used turned the default 1024 into 39 instead of the default 100.
    """
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34) - 1e-9)


def set_cpu(directory: str, cpu: Section) -> None:
    """Weights, bandwidth and the set of processors."""
    for key in ("realtimeRuntime", "realtimePeriod"):
        if number(cpu, key):
            raise CgroupError(f"linux.resources.cpu.{key} needs cgroup v1: v2 has no real-time bandwidth")
    if cpu.get("idle") is not None:
        write(f"{directory}/cpu.idle", number(cpu, "idle"))
    if (shares := shares_of(cpu)) and not number(cpu, "idle"):
        write(f"{directory}/cpu.weight", weight_of_shares(shares))
    quota, period, burst = number(cpu, "quota"), number(cpu, "period"), number(cpu, "burst")
    if quota or period:
        present = ""
        if not quota:
            present = read(f"{directory}/cpu.max").split()[0]
        bandwidth = present or text_of(quota)
        write(f"{directory}/cpu.max", f"{bandwidth} {period}" if period else bandwidth)
    if burst:
        write(f"{directory}/cpu.max.burst", burst)
    for key in ("cpus", "mems"):
        if value := cpu.get(key):
            write(f"{directory}/cpuset.{key}", value)


def io_weight(weight: int) -> int:
    """``io.weight`` (1 … 10000) for a v1 weight (10 … 1000)."""
    return 1 + (weight - 10) * 9999 // 990


def set_io(directory: str, block: Section) -> None:
    """Weights by the BFQ scheduler's file where it is there, else by ``io.weight``; throttles by ``io.max``."""
    bfq = f"{directory}/io.bfq.weight"
    has_bfq = os.path.exists(bfq)
    if weight := number(block, "weight"):
        if has_bfq:
            write(bfq, weight)
        else:
            write(f"{directory}/io.weight", f"default {io_weight(weight)}")
    for entry in block.get("weightDevice") or ():
        if not (weight := number(entry, "weight")):
            continue
        if has_bfq:
            write(bfq, f"{device_number(entry)} {weight}")
        else:
            write(f"{directory}/io.weight", f"{device_number(entry)} {io_weight(weight)}")
    for key, name in (
        ("throttleReadBpsDevice", "rbps"),
        ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    ):
        for entry in block.get(key) or ():
            write(f"{directory}/io.max", f"{device_number(entry)} {name}={number(entry, 'rate') or 'max'}")


def set_rdma(directory: str, device: str, limits: Section) -> None:
    """Handles and objects of one device."""
    parts = [
        f"{file}={number(limits, key)}"
        for key, file in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
        if limits.get(key) is not None
    ]
    write(f"{directory}/rdma.max", " ".join([device, *parts]))


def set_unified(directory: str, unified: Section) -> None:
    """Files named by the user; a name with a slash would be a way out of the cgroup."""
    for name, value in unified.items():
        if "/" in name or name in ("", ".", ".."):
            raise CgroupError(f'linux.resources.unified: "{name}" must be a file name without a slash')
        try:
            lines = str(value).splitlines() or [""]
            for line in lines:
                write(f"{directory}/{name}", line)
        except CgroupError as error:
            controller = name.partition(".")[0]
            available = read(f"{directory}/cgroup.controllers").split()
            if controller not in (*available, "cgroup"):
                raise CgroupError(
                    f'linux.resources.unified: cannot set "{name}": controller "{controller}" is not available'
                ) from error
            raise
