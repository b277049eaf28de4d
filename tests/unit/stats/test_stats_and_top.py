"""Stats from both metric messages, as the shim encodes them; network counters; ``ps`` output."""

from __future__ import annotations

import pytest

from engine.containers.stats_metrics import decode, parse_net_dev, system_cpu
from engine.containers.top import parse_ps
from oci.errors import Internal
from protos.cgroup_metrics import METRICS_V1, METRICS_V2, V1, V2
from shim import metrics

RAW = {
    "pids": {"current": 3, "limit": 50},
    "cpu": {
        "usage": {"total": 9_000_000, "kernel": 2_000_000, "user": 7_000_000, "percpu": [4, 5]},
        "throttling": {"periods": 1, "throttledPeriods": 2, "throttledTime": 3000},
    },
    "memory": {
        "usage": {"usage": 4096, "limit": 1 << 62, "max": 8192, "failcnt": 2},
        "raw": {"inactive_file": 7, "total_inactive_file": 9, "cache": 1},
    },
    "blkio": {"ioServiceBytesRecursive": [{"op": "Read", "major": 8, "minor": 1, "value": 77}]},
}


def test_v1_message() -> None:
    found = decode(f"type.googleapis.com/{V1}", metrics.METRICS_V1.encode(metrics._v1(RAW)), 1000)
    assert found["cpu_stats"]["cpu_usage"] == {
        "total_usage": 9_000_000, "usage_in_kernelmode": 2_000_000, "usage_in_usermode": 7_000_000,
        "percpu_usage": [4, 5],
    }  # fmt: skip
    assert found["cpu_stats"]["throttling_data"] == {"periods": 1, "throttled_periods": 2, "throttled_time": 3000}
    memory = found["memory_stats"]
    assert (memory["usage"], memory["max_usage"], memory["failcnt"], memory["limit"]) == (4096, 8192, 2, 1000)
    assert memory["stats"]["total_inactive_file"] == 9
    assert found["pids_stats"] == {"current": 3, "limit": 50}
    assert found["blkio_stats"]["io_service_bytes_recursive"] == [{"major": 8, "minor": 1, "op": "Read", "value": 77}]


def test_v2_message() -> None:
    found = decode(V2, metrics.METRICS_V2.encode(metrics._v2(RAW)), 1 << 63)
    assert found["cpu_stats"]["cpu_usage"] == {
        "total_usage": 9_000_000, "usage_in_kernelmode": 2_000_000, "usage_in_usermode": 7_000_000,
    }  # fmt: skip
    assert found["cpu_stats"]["throttling_data"]["throttled_time"] == 3000
    memory = found["memory_stats"]
    assert (memory["usage"], memory["limit"], memory["stats"]["inactive_file"]) == (4096, 1 << 62, 7)
    assert found["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 1, "op": "read", "value": 77}, {"major": 8, "minor": 1, "op": "write", "value": 0},
    ]  # fmt: skip
    assert found["blkio_stats"]["io_serviced_recursive"] is None


def test_empty_messages_are_zero() -> None:
    for name, message in ((V1, METRICS_V1), (V2, METRICS_V2)):
        found = decode(name, message.encode({}), 10)
        assert found["cpu_stats"]["cpu_usage"]["total_usage"] == 0
        assert found["memory_stats"]["limit"] == 10


def test_host_counters() -> None:
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo\n"
        "    lo:  1  2 0 0 0 0 0 0  1  2 0 0 0 0 0 0\n"
        "  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\n"
    )
    assert parse_net_dev(text) == {
        "eth0": {
            "rx_bytes": 1000, "rx_packets": 10, "rx_errors": 1, "rx_dropped": 2,
            "tx_bytes": 2000, "tx_packets": 20, "tx_errors": 3, "tx_dropped": 4,
        }
    }  # fmt: skip
    assert system_cpu("cpu  1 2 3 4 5 6 7 100 0 0\ncpu0", 100) == 28 * 10_000_000


def test_ps_output() -> None:
    output = "UID   PID CMD\nroot   10 sleep  1000\nroot    - -\nroot   11 other\n"
    found = parse_ps(output, {10})
    assert found == {"Titles": ["UID", "PID", "CMD"], "Processes": [["root", "10", "sleep  1000"], ["root", "-", "-"]]}
    with pytest.raises(Internal, match="Couldn't find PID field"):
        parse_ps("CMD\nx\n", {1})
