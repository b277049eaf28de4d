"""Counters of calls, and the pages that Prometheus reads."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest

from containerd_py.metrics import containers, exposition, process
from containerd_py.metrics.rpcs import Method, Rpcs, code_name, method_of
from containerd_py.services import errors as services
from containerd_py.services.content import ContentService
from containerd_py.services.rpcs import SERVICE
from containerd_py.services.streaming import StreamingService
from containerd_py.services.tasks import TasksService
from oci.errors import Code, NotFound, PermissionDenied
from protos.cgroup_metrics import METRICS_V1, METRICS_V2, V1, V2
from protos.containerd import namespaces_pb2


def test_methods_have_their_published_names() -> None:
    def found(servicer: type, name: str) -> Method:
        service: Any = vars(servicer)[SERVICE]
        return method_of(service.methods_by_name[name])

    assert found(TasksService, "Create") == Method("containerd.services.tasks.v1.Tasks", "Create", "unary")
    assert found(ContentService, "Read").kind == "server_stream"
    assert found(ContentService, "Write").kind == "bidi_stream"
    assert found(StreamingService, "Stream").service == "containerd.services.streaming.v1.Streaming"


def test_codes_have_gos_names() -> None:
    assert [code_name(code) for code in (None, Code.CANCELED, Code.NOT_FOUND)] == ["OK", "Canceled", "NotFound"]


def test_calls_are_counted_with_how_they_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Rpcs()
    counters.seconds = {}
    monkeypatch.setattr(services, "RPCS", counters)

    @services.served(namespaces_pb2.DESCRIPTOR.services_by_name["Namespaces"])
    class Service:
        async def Get(self, request: Any, context: Any) -> str:
            return "fine"

        async def Create(self, request: Any, context: Any) -> str:
            raise NotFound("not here")

        async def List(self, request: Any, context: Any) -> AsyncIterator[int]:
            for number in range(3):
                yield number

        async def Update(self, request: Any, context: Any) -> None:
            await asyncio.sleep(60)

        async def Delete(self, request: Any, context: Any) -> None:
            raise PermissionError(errno.EACCES, "hands off")

    service: Any = Service()

    async def calls() -> None:
        assert await service.Get(None, None) == "fine"
        with pytest.raises(NotFound, match="not here"):
            await service.Create(None, None)
        with pytest.raises(PermissionDenied, match="hands off"):
            await service.Delete(None, None)
        assert [number async for number in service.List(None, None)] == [0, 1, 2]
        waiting = asyncio.create_task(service.Update(None, None))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))

    asyncio.run(calls())
    ended = {(method.name, code): count for (method, code), count in counters.handled.items()}
    assert ended == {
        ("Get", None): 1,
        ("Create", Code.NOT_FOUND): 1,
        ("Delete", Code.PERMISSION_DENIED): 1,
        ("List", None): 1,
        ("Update", Code.CANCELED): 1,
    }
    assert {method.name: count for method, count in counters.sent.items()} == {"Get": 1, "List": 3}
    page = exposition.text(counters.families())
    assert 'grpc_server_handled_total{grpc_code="NotFound",grpc_method="Create",' in page
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
