"""The statistics of several tasks as those of all of them: for sandboxes, whose tasks have cgroups of their own.

Rule: counters add up; limits do not (what one task may use says nothing about the others) and are left out. Entries of
a list are told apart by what names them: device and operation, or their place among the processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protos.cgroup_metrics import METRICS_V1, METRICS_V2, V1, V2
from protos.wire import Field, Message, Values

_TABLES = {V1: METRICS_V1, V2: METRICS_V2}
_LIMITS = frozenset(("limit", "usage_limit", "swap_limit", "hierarchical_memory_limit", "hierarchical_memsw_limit"))
_NAMES = frozenset(("op", "device", "major", "minor"))


def add_up(stats: Sequence[Values]) -> Values | None:
    """The Any of the sum of several of the same type; others than the first's type are left out. None for nothing.

    Raises ``WireError`` for what is no statistics.
    """
    known = [entry for entry in stats if entry["type_url"].rpartition("/")[2] in _TABLES]
    if not known:
        return None
    name = known[0]["type_url"].rpartition("/")[2]
    table = _TABLES[name]
    same = [table.decode(entry["value"]) for entry in known if entry["type_url"].rpartition("/")[2] == name]
    return {"type_url": name, "value": table.encode(_sum(table, same))}


def _sum(table: Message, parts: Sequence[Values]) -> Values:
    return {field.name: _field(field, [part[field.name] for part in parts]) for field in table.fields}


def _field(field: Field, values: list[Any]) -> Any:
    if field.name in _NAMES:
        return values[0]
    if field.repeated:
        return _entries(field, values)
    if isinstance(field.kind, Message):
        there = [value for value in values if value is not None]
        return _sum(field.kind, there) if there else None
    return 0 if field.name in _LIMITS else sum(values) & ((1 << 64) - 1)


def _entries(field: Field, lists: list[list[Any]]) -> list[Any]:
    if not isinstance(field.kind, Message):
        longest = max(map(len, lists))
        return [sum(values[at] for values in lists if at < len(values)) for at in range(longest)]
    found: dict[tuple[Any, ...], list[Values]] = {}
    for entry in (entry for entries in lists for entry in entries):
        found.setdefault(tuple(entry.get(name) for name in sorted(_NAMES)), []).append(entry)
    return [_sum(field.kind, same) for same in found.values()]
