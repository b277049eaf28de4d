"""The HTTP endpoint that Prometheus asks: ``GET /v1/metrics`` (containerd's path) and ``/metrics``.

Rule: it only reads, and costs nothing until it is asked: no timer, no sampling. A container that does not tell its
statistics in time is missing on the page, the page is not late for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import h11
import structlog

from containerd_py.exchange import LocalExchange
from containerd_py.metrics import containers, exposition, process
from containerd_py.metrics.rpcs import RPCS
from containerd_py.services.version import REVISION
from containerd_py.tasks.manager import TaskManager
from containerd_py.tasks.task import Task
from oci.errors import FailedPrecondition, GantryError
from oci.version import __version__
from protos.containerd import event_types_pb2, shim_v2_pb2

STATS_SECONDS = 2.0
"""What a shim may take for its statistics; containerd's own limit."""
REQUEST_SECONDS = 10.0
PATHS = (b"/v1/metrics", b"/metrics")

_log = structlog.get_logger("containerd_py.metrics")


class Page:
    """Everything there is to tell, gathered when it is asked for."""

    def __init__(self, manager: TaskManager, exchange: LocalExchange) -> None:
        self._manager = manager
        self._exchange = exchange
        self._ooms: Counter[tuple[str, str]] = Counter()

    async def count_ooms(self) -> None:
        """Count what the kernel killed for want of memory; forget those whose task is deleted. Runs until cancelled."""
        filters = ('topic=="/tasks/oom"', 'topic=="/tasks/delete"')
        async for envelope in self._exchange.subscribe(filters):
            if envelope.topic == "/tasks/oom":
                id = event_types_pb2.TaskOOM.FromString(envelope.event.value).container_id
                self._ooms[envelope.namespace, id] += 1
            else:
                id = event_types_pb2.TaskDelete.FromString(envelope.event.value).container_id
                self._ooms.pop((envelope.namespace, id), None)

    async def text(self) -> str:
        """The page of now."""
        tasks = [task for namespace in self._manager.namespaces() for task in self._manager.list(namespace)]
        found = await asyncio.gather(*map(_statistics, tasks), return_exceptions=True)
        statistics = [one for one in found if isinstance(one, containers.Statistics)]
        return exposition.text(
            [
                *containers.families(statistics, self._ooms),
                *RPCS.families(),
                *process.families(__version__, REVISION),
            ]
        )


async def _statistics(task: Task) -> containers.Statistics:
    request = shim_v2_pb2.StatsRequest(id=task.id)
    answer = await task.call("Stats", request, shim_v2_pb2.StatsResponse, seconds=STATS_SECONDS)
    return containers.Statistics(task.namespace, task.id, answer.stats.type_url, answer.stats.value)


async def serve(address: str, page: Page) -> Callable[[], None]:
    """Listen on ``HOST:PORT``; what is returned ends it. Raises ``FailedPrecondition`` for a useless address."""
    host, _, port = address.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, h11.ProtocolError):
            async with asyncio.timeout(REQUEST_SECONDS):
                await _converse(reader, writer, page)
        writer.close()

    try:
        server = await asyncio.start_server(connected, host.strip("[]") or None, int(port))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"cannot serve metrics on {address}: {error}", hint="choose another --metrics-address"
        ) from error
    counting = asyncio.create_task(page.count_ooms())
    _log.info("metrics", address=address)

    def close() -> None:
        counting.cancel()
        server.close()

    return close


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, page: Page) -> None:
    """One request, one answer."""
    connection = h11.Connection(h11.SERVER)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(65536))
    if not isinstance(event, h11.Request):
        return
    status, body = await _answer(event, page)
    headers = [
        ("Content-Type", exposition.CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    writer.write(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
    if event.method != b"HEAD":
        writer.write(body)
    await writer.drain()


async def _answer(request: h11.Request, page: Page) -> tuple[int, bytes]:
    if request.target.partition(b"?")[0] not in PATHS:
        return 404, b"metrics are at /v1/metrics\n"
    if request.method not in (b"GET", b"HEAD"):
        return 405, b"ask with GET\n"
    try:
        return 200, (await page.text()).encode()
    except GantryError as error:
        return 503, f"{error}\n".encode()
