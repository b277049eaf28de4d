"""How a process gets processors, disks and memory nodes: scheduler, I/O priority, affinity, NUMA policy.

Rule: ``*_of`` reads and checks a part of the spec and touches nothing; ``apply`` is what the child calls. Sources:
runtime-spec ``config.md#linux-process``, ``config-linux.md#memory-policy``, sched(7), ioprio_set(2), set_mempolicy(2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from runc_py import syscalls
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import os

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_PROCESS_GROUP = 2
_MIN_RUNTIME, _MAX_RUNTIME = 1024, 1 << 63
MAX_NUMBER = 8191
"""Largest processor or memory node number accepted: what kernels can be built for."""


class Scheduler(NamedTuple):
    """Arguments of sched_setattr(2); ``times`` are runtime, deadline, period in nanoseconds."""

    policy: int
    flags: int
    nice: int
    priority: int
    times: tuple[int, int, int]

    def apply(self) -> None:
        """Schedule this process so. Real-time and deadline policies need CAP_SYS_NICE."""
        try:
            syscalls.sched_setattr(*self)
        except OSError as error:
            raise RuntimeFailure(f"process.scheduler: sched_setattr: {error.strerror}") from error


def scheduler_of(process: Mapping[str, Any], where: str = "process") -> Scheduler | None:
    """``process.scheduler``; None when there is none."""
    wanted = process.get("scheduler")
    if not wanted:
        return None
    path = f"{where}.scheduler"
    _require_object(wanted, path)
    name = wanted.get("policy")
    policy = _lookup(POLICIES, name, f"{path}.policy")
    flags = _bits(SCHEDULER_FLAGS, wanted.get("flags"), f"{path}.flags")
    nice = _integer(wanted, "nice", path, -20, 19)
    priority = _integer(wanted, "priority", path, 0, 99)
    times = tuple(_integer(wanted, key, path, 0, (1 << 64) - 1) for key in ("runtime", "deadline", "period"))
    if name == "SCHED_DEADLINE":
        _check_deadline(wanted, path)
    elif any(times):
        raise InvalidSpec(f"{path}: runtime, deadline and period are for SCHED_DEADLINE, not {name}")
    if priority and name not in ("SCHED_FIFO", "SCHED_RR"):
        raise InvalidSpec(f"{path}.priority: {name} has no static priority")
    return Scheduler(policy, flags, nice, priority, (times[0], times[1], times[2]))


def _check_deadline(wanted: Mapping[str, Any], path: str) -> None:
    """What sched(7) asks of a deadline task: the kernel would only say EINVAL."""
    prefix = f"{path}: sched_setattr: `SCHED_DEADLINE`"
    for key in ("runtime", "deadline"):
        if key not in wanted:
            raise InvalidSpec(f"{prefix} requires `{key}`")
    runtime, deadline = wanted["runtime"], wanted["deadline"]
    period = wanted.get("period") or deadline
    if runtime == 0:
        raise InvalidSpec(f"{prefix} runtime must be greater than 0")
    if not _MIN_RUNTIME <= runtime < _MAX_RUNTIME:
        raise InvalidSpec(f"{prefix} runtime {runtime} must be between {_MIN_RUNTIME} and {_MAX_RUNTIME - 1}")
    if runtime > deadline:
        raise InvalidSpec(f"{prefix} runtime {runtime} must be <= deadline {deadline}")
    if deadline > period:
        raise InvalidSpec(f"{prefix} deadline {deadline} must be <= period {period}")


class IoPriority(NamedTuple):
    """Class and level (0 highest … 7) of the block layer's queue."""

    kind: int
    level: int

    def apply(self) -> None:
        """For this process's group, which its children join."""
        try:
            syscalls.ioprio_set(_PROCESS_GROUP, 0, self.kind << 13 | self.level)
        except OSError as error:
            raise RuntimeFailure(f"process.ioPriority: {error.strerror}") from error


def io_priority_of(process: Mapping[str, Any], where: str = "process") -> IoPriority | None:
    """``process.ioPriority``; None when there is none."""
    wanted = process.get("ioPriority")
    if not wanted:
        return None
    path = f"{where}.ioPriority"
    _require_object(wanted, path)
    return IoPriority(
        _lookup(IO_CLASSES, wanted.get("class"), f"{path}.class"), _integer(wanted, "priority", path, 0, 7)
    )


class MemoryPolicy(NamedTuple):
    """Mode with flags, and the nodes as a bit mask."""

    mode: int
    nodes: int

    def apply(self) -> None:
        """For this process and what it will execute."""
        try:
            syscalls.set_mempolicy(*self)
        except OSError as error:
            raise RuntimeFailure(f"linux.memoryPolicy: {error.strerror}") from error


def memory_policy_of(linux: Mapping[str, Any]) -> MemoryPolicy | None:
    """``linux.memoryPolicy``; None when there is none."""
    wanted = linux.get("memoryPolicy")
    if wanted is None:
        return None
    path = "linux.memoryPolicy"
    _require_object(wanted, path)
    name = wanted.get("mode")
    mode = _lookup(MEMORY_MODES, name, f"{path}.mode")
    flags = _bits(MEMORY_FLAGS, wanted.get("flags"), f"{path}.flags")
    nodes = number_set(wanted.get("nodes") or "", f"{path}.nodes")
    if nodes and name in _WITHOUT_NODES:
        raise InvalidSpec(f"{path}.nodes: {name} takes no nodes")
    if not nodes and name not in (*_WITHOUT_NODES, "MPOL_PREFERRED"):
        raise InvalidSpec(f"{path}.nodes: {name} needs at least one node")
    return MemoryPolicy(mode | flags, sum(1 << number for number in nodes))


class Affinity(NamedTuple):
    """Processors for the moment before, and the time after, an exec has entered the container's cgroup."""

    initial: frozenset[int]
    final: frozenset[int]

    def first_step(self) -> None:
        """Before the cgroup is entered."""
        set_affinity(self.initial)

    def final_step(self) -> None:
        """In the cgroup."""
        set_affinity(self.final)


def affinity_of(process: Mapping[str, Any], where: str = "process") -> Affinity | None:
    """``process.execCPUAffinity``; None when there is none."""
    wanted = process.get("execCPUAffinity")
    if not wanted:
        return None
    path = f"{where}.execCPUAffinity"
    _require_object(wanted, path)
    sets = [number_set(wanted.get(key) or "", f"{path}.{key}") for key in ("initial", "final")]
    return Affinity(sets[0], sets[1])


def set_affinity(processors: frozenset[int]) -> None:
    """Run on ``processors`` only; an empty set changes nothing."""
    if processors:
        try:
            os.sched_setaffinity(0, processors)
        except OSError as error:
            raise RuntimeFailure(f"process.execCPUAffinity: {error.strerror}") from error


def number_set(text: Any, path: str) -> frozenset[int]:
    """``0-3,7`` as a set of numbers."""
    if not isinstance(text, str):
        raise InvalidSpec(f"{path}: must be a string such as 0-3,7")
    found: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        first, separator, last = part.strip().partition("-")
        ends = [first, last if separator else first]
        if not all(end.isascii() and end.isdigit() and int(end) <= MAX_NUMBER for end in ends):
            raise InvalidSpec(f'{path}: "{part}" is not a number up to {MAX_NUMBER} or a range of them')
        if int(ends[0]) > int(ends[1]):
            raise InvalidSpec(f'{path}: "{part}" ends before it begins')
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return frozenset(found)


def _require_object(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise InvalidSpec(f"{path}: must be an object")


def _lookup(table: Mapping[str, int], name: Any, path: str) -> int:
    if not isinstance(name, str) or name not in table:
        raise InvalidSpec(f'{path}: "{name}" is not one of {", ".join(table)}')
    return table[name]


def _bits(table: Mapping[str, int], names: Any, path: str) -> int:
    if names is not None and not isinstance(names, list):
        raise InvalidSpec(f"{path}: must be a list")
    value = 0
    for name in names or ():
        value |= _lookup(table, name, path)
    return value


def _integer(values: Mapping[str, Any], key: str, path: str, low: int, high: int) -> int:
    value = values.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidSpec(f"{path}.{key}: {value!r} is not a number between {low} and {high}")
    return value
