"""Statistics of several tasks as those of all of them."""

from __future__ import annotations

from protos.cgroup_metrics import METRICS_V1, METRICS_V2, V1, V2
from protos.cgroup_sums import add_up
from protos.wire import Values


def packed(name: str, values: Values) -> Values:
    table = {V1: METRICS_V1, V2: METRICS_V2}[name]
    return {"type_url": name, "value": table.encode(values)}


def test_counters_add_up_and_limits_do_not() -> None:
    one = {"pids": {"current": 2, "limit": 10}, "cpu": {"usage": {"total": 5, "per_cpu": [1, 4]}}}
    two = {"pids": {"current": 3, "limit": 7}, "cpu": {"usage": {"total": 6, "per_cpu": [1, 2, 3]}}}
    total = add_up([packed(V1, one), packed(V1, two)])
    assert total is not None and total["type_url"] == V1
    sums = METRICS_V1.decode(total["value"])
    assert (sums["pids"]["current"], sums["pids"]["limit"]) == (5, 0)
    assert sums["cpu"]["usage"]["total"] == 11
    assert sums["cpu"]["usage"]["per_cpu"] == [2, 6, 3]
    assert sums["memory"] is None, "what nobody has is not made up"


def test_entries_of_the_same_device_are_one() -> None:
    def disk(*entries: tuple[int, int, int]) -> Values:
        usage = [{"major": major, "minor": minor, "rbytes": read} for major, minor, read in entries]
        return packed(V2, {"io": {"usage": usage}})

    total = add_up([disk((8, 0, 100), (8, 16, 1)), disk((8, 0, 11))])
    assert total is not None
    usage = METRICS_V2.decode(total["value"])["io"]["usage"]
    assert [(entry["major"], entry["minor"], entry["rbytes"]) for entry in usage] == [(8, 0, 111), (8, 16, 1)]


def test_nothing_and_strangers() -> None:
    assert add_up([]) is None
    assert add_up([{"type_url": "somebody.else/Stats", "value": b"x"}]) is None
    mixed = add_up([packed(V1, {"pids": {"current": 1}}), packed(V2, {"pids": {"current": 5}})])
    assert mixed is not None and METRICS_V1.decode(mixed["value"])["pids"]["current"] == 1
