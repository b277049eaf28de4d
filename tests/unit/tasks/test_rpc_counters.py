"""Counters of calls, and the pages that Prometheus reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from containerd_py.metrics import containers, exposition, process
from containerd_py.metrics.rpcs import Method, Rpcs, code_name, method_of
from containerd_py.services import errors as services
from containerd_py.services.content import ContentService
from containerd_py.services.streaming import StreamingService
from containerd_py.services.tasks import TasksService
from oci.errors import NotFound
from protos.cgroup_metrics import METRICS_V1, METRICS_V2, V1, V2


def test_methods_have_their_published_names() -> None:
    tasks = "containerd.services.tasks.v1.Tasks"
    assert method_of(TasksService, "Create") == Method(tasks, "Create", "unary")
    assert method_of(ContentService, "Read").kind == "server_stream"
    assert method_of(ContentService, "Write").kind == "bidi_stream"
    assert method_of(StreamingService, "Stream").service == "containerd.services.streaming.v1.Streaming"


def test_codes_have_gos_names() -> None:
    assert [code_name(code) for code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.NOT_FOUND)] == [
        "OK",
        "Canceled",
        "NotFound",
    ]


class Context:
    """A call that ends with what was said to ``abort``."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise LookupError(code, details)


def test_calls_are_counted_with_how_they_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Rpcs()
    counters.seconds = {}
    monkeypatch.setattr(services, "RPCS", counters)

    @services.served
    class Service:
        async def Good(self, request: Any, context: Any) -> str:
            return "fine"

        async def Bad(self, request: Any, context: Any) -> str:
            raise NotFound("not here")

        async def Many(self, request: Any, context: Any) -> AsyncIterator[int]:
            for number in range(3):
                yield number

        async def Long(self, request: Any, context: Any) -> None:
            await asyncio.sleep(60)

    service: Any = Service()

    async def calls() -> None:
        context = Context()
        assert await service.Good(None, context) == "fine"
        with pytest.raises(LookupError, match="not here"):
            await service.Bad(None, context)
        assert [number async for number in service.Many(None, context)] == [0, 1, 2]
        waiting = asyncio.create_task(service.Long(None, context))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))

    asyncio.run(calls())
    ended = {(method.name, code): count for (method, code), count in counters.handled.items()}
    assert ended == {
        ("Good", grpc.StatusCode.OK): 1,
        ("Bad", grpc.StatusCode.NOT_FOUND): 1,
        ("Many", grpc.StatusCode.OK): 1,
        ("Long", grpc.StatusCode.CANCELLED): 1,
    }
    assert {method.name: count for method, count in counters.sent.items()} == {"Good": 1, "Many": 3}
    page = exposition.text(counters.families())
    assert 'grpc_server_handled_total{grpc_code="NotFound",grpc_method="Bad",' in page
    assert 'le="+Inf"} 1' in page
    assert "# TYPE grpc_server_handling_seconds histogram" in page


def test_statistics_have_containerds_names() -> None:
    memory = {"rss": 4096, "usage": {"usage": 8192, "limit": 1 << 30, "max": 9000, "failcnt": 2}}
    cpu = {"usage": {"total": 7, "kernel": 3, "user": 4, "per_cpu": [5, 2]}}
    blkio = {"io_service_bytes_recursive": [{"op": "Read", "device": "/dev/x", "major": 8, "minor": 1, "value": 512}]}
    first = METRICS_V1.encode({"pids": {"current": 3}, "cpu": cpu, "memory": memory, "blkio": blkio})
    second = METRICS_V2.encode(
        {"cpu": {"usage_usec": 11}, "memory": {"usage": 12}, "io": {"usage": [{"major": 8, "rbytes": 13}]}}
    )
    found = [
        containers.Statistics("moby", "one", V1, first),
        containers.Statistics("k8s.io", "two", V2, second),
        containers.Statistics("k8s.io", "odd", "something.else", b"\xff"),
        containers.Statistics("k8s.io", "bad", V2, b"\xff"),
    ]
    lines = exposition.text(containers.families(found, {("moby", "one"): 1})).splitlines()
    one, two = 'container_id="one",namespace="moby"', 'container_id="two",namespace="k8s.io"'
    for line in (
        f"container_cpu_total_nanoseconds{{{one}}} 7",
        f'container_per_cpu_nanoseconds{{{one},cpu="1"}} 2',
        f"container_memory_rss_bytes{{{one}}} 4096",
        f"container_memory_usage_usage_bytes{{{one}}} 8192",
        f"container_memory_usage_failcnt_total{{{one}}} 2",
        f"container_pids_current{{{one}}} 3",
        f'container_blkio_io_service_bytes_recursive_bytes{{{one},op="Read",device="/dev/x",major="8",minor="1"}} 512',
        f"container_memory_oom_total{{{one}}} 1",
        f"container_cpu_usage_usec_microseconds{{{two}}} 11",
        f"container_memory_usage_bytes{{{two}}} 12",
        f'container_io_rbytes_bytes{{{two},major="8",minor="0"}} 13',
    ):
        assert line in lines
    assert len([line for line in lines if line.startswith("# TYPE container_pids_current ")]) == 1


def test_labels_are_escaped() -> None:
    family = exposition.Family("a", "gauge", "line\nline", [exposition.Sample(1.5, {"b": 'x"\\\n'})])
    assert exposition.text([family]) == '# HELP a line\\nline\n# TYPE a gauge\na{b="x\\"\\\\\\n"} 1.5\n'


def test_this_process() -> None:
    page = exposition.text(process.families("1.2", "r"))
    assert 'containerd_build_info_total{version="1.2",revision="r"} 1' in page
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("process_"))
    assert float(values["process_resident_memory_bytes"]) > 1 << 20
    assert float(values["process_open_fds"]) >= 3
