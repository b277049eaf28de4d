"""A task's cgroup statistics as containerd's ``container_*`` families.

Rule: names, units and labels are those of containerd's ``core/metrics/cgroups``, all of them gauges as there; a value
that the message does not carry has no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from containerd_py.metrics.exposition import Family, Sample
from protos.cgroup_metrics import (
    BLKIO_NAMES,
    MEMORY_V1_ENTRIES,
    MEMORY_V1_NAMES,
    MEMORY_V2_NAMES,
    METRICS_V1,
    METRICS_V2,
)
from protos.wire import WireError

_BYTES_OF_ENTRY = ("limit", "max", "usage")
_BLKIO_SHOWN = {"io_queue_recursive": "io_queued_recursive"}


class Statistics(NamedTuple):
    """The ``Any`` a task gave as its metrics."""

    namespace: str
    id: str
    type_url: str
    value: bytes


class _Value(NamedTuple):
    name: str
    value: int
    labels: Mapping[str, str] = {}


def families(found: Iterable[Statistics], ooms: Mapping[tuple[str, str], int]) -> list[Family]:
    """Statistics of all tasks; ``ooms`` counts kills for want of memory by (namespace, id)."""
    samples: dict[str, list[Sample]] = {}
    for one in found:
        labels = {"container_id": one.id, "namespace": one.namespace}
        for name, value, more in _values(one):
            samples.setdefault(f"container_{name}", []).append(Sample(value, {**labels, **more}))
    oom = [Sample(n, {"container_id": id, "namespace": namespace}) for (namespace, id), n in ooms.items()]
    counted = Family("container_memory_oom_total", "gauge", "Times a container had too little memory", oom)
    return [*(Family(name, "gauge", _help(name), values) for name, values in sorted(samples.items())), counted]


def _help(name: str) -> str:
    return " ".join(name.split("_")[1:]) + " of the container's cgroup"


def _values(one: Statistics) -> Iterator[_Value]:
    name = one.type_url.rpartition("/")[2]
    try:
        if name == METRICS_V1.name:
            yield from _from_v1(METRICS_V1.decode(one.value))
        elif name == METRICS_V2.name:
            yield from _from_v2(METRICS_V2.decode(one.value))
    except WireError:
        return  # a foreign shim's business: the page shows the others


def _pids(message: Mapping[str, Any]) -> Iterator[_Value]:
    if (pids := message["pids"]) is not None:
        yield _Value("pids_limit", pids["limit"])
        yield _Value("pids_current", pids["current"])


def _from_v1(message: Mapping[str, Any]) -> Iterator[_Value]:
    yield from _pids(message)
    if (cpu := message["cpu"]) is not None:
        yield from _cpu_v1(cpu)
    if (memory := message["memory"]) is not None:
        yield from (_Value(f"memory_{name}_bytes", memory[name]) for name in MEMORY_V1_NAMES)
        for name in MEMORY_V1_ENTRIES:
            if (entry := memory[name]) is not None:
                shown = name.replace("_", "")
                yield from (_Value(f"memory_{shown}_{part}_bytes", entry[part]) for part in _BYTES_OF_ENTRY)
                yield _Value(f"memory_{shown}_failcnt_total", entry["failcnt"])
    for name in BLKIO_NAMES:
        yield from _blkio(name, (message["blkio"] or {}).get(name) or ())


def _cpu_v1(cpu: Mapping[str, Any]) -> Iterator[_Value]:
    if (usage := cpu["usage"]) is not None:
        yield from (_Value(f"cpu_{name}_nanoseconds", usage[name]) for name in ("total", "kernel", "user"))
        for number, spent in enumerate(usage["per_cpu"]):
            yield _Value("per_cpu_nanoseconds", spent, {"cpu": str(number)})
    if (throttle := cpu["throttling"]) is not None:
        yield _Value("cpu_throttle_periods_total", throttle["periods"])
        yield _Value("cpu_throttled_periods_total", throttle["throttled_periods"])
        yield _Value("cpu_throttled_time_nanoseconds", throttle["throttled_time"])


def _blkio(name: str, entries: Iterable[Mapping[str, Any]]) -> Iterator[_Value]:
    unit = "bytes" if "bytes" in name else "total"
    for entry in entries:
        labels = {key: str(entry[key]) for key in ("op", "device", "major", "minor")}
        yield _Value(f"blkio_{_BLKIO_SHOWN.get(name, name)}_{unit}", entry["value"], labels)


def _from_v2(message: Mapping[str, Any]) -> Iterator[_Value]:
    yield from _pids(message)
    for name, value in (message["cpu"] or {}).items():
        yield _Value(f"cpu_{name}_{'microseconds' if name.endswith('usec') else 'total'}", value)
    if (memory := message["memory"]) is not None:
        shown = (*MEMORY_V2_NAMES, "usage", "usage_limit", "swap_usage", "swap_limit")
        yield from (_Value(f"memory_{name}_bytes", memory[name]) for name in shown)
    for entry in (message["io"] or {}).get("usage") or ():
        labels = {key: str(entry[key]) for key in ("major", "minor")}
        yield from (_Value(f"io_{name}_bytes", entry[name], labels) for name in ("rbytes", "wbytes"))
        yield from (_Value(f"io_{name}_total", entry[name], labels) for name in ("rios", "wios"))
