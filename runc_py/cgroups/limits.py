"""Reading ``linux.resources``: small helpers that both cgroup versions share.

Rule: 0 and absent mean "leave it alone", −1 means "no limit", as in runc.
"""

from __future__ import annotations

from runc_py.cgroups.base import CgroupError
from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeAlias

Section: TypeAlias = "Mapping[str, Any]"

MIN_SHARES, MAX_SHARES = 2, 262144


def section(resources: Mapping[str, Any], name: str) -> Section:
    """An object of ``linux.resources``; empty when absent."""
    value = resources.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CgroupError(f"linux.resources.{name} must be an object")
    return value


def number(values: Section, name: str) -> int:
    """A number of a section; 0 when absent."""
    value = values.get(name)
    if value is None:
        return 0
    if not isinstance(value, int):
        raise CgroupError(f"linux.resources: {name} must be an integer, it is {value!r}")
    return value


def shares_of(cpu: Section) -> int:
    """``cpu.shares`` within what kernels take; 0 when absent."""
    shares = number(cpu, "shares")
    if shares and not MIN_SHARES <= shares <= MAX_SHARES:
        bound = f"the minimum allowed cpu-shares is {MIN_SHARES}" if shares < MIN_SHARES else ""
        raise CgroupError(bound or f"the maximum allowed cpu-shares is {MAX_SHARES}")
    return shares


def memory_and_swap(memory: Section) -> tuple[int, int]:
    """(limit, limit of memory plus swap); an unlimited memory means unlimited swap unless that is given."""
    limit, swap = number(memory, "limit"), number(memory, "swap")
    if limit == -1 and swap == 0:
        swap = -1
    if swap not in (0, -1) and limit > swap:
        raise CgroupError(
            f"linux.resources.memory.swap is memory plus swap: {swap} must not be less than the memory limit {limit}"
        )
    return limit, swap


def device_number(entry: Section) -> str:
    """``major:minor`` of a block device entry."""
    return f"{number(entry, 'major')}:{number(entry, 'minor')}"
