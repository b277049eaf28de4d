"""The event bus: order, filters, duplicates, slow subscribers, and shims that forward over ttrpc."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from containerd_py import exchange as exchange_module
from containerd_py.exchange import LocalExchange, Subscription, check_topic
from containerd_py.services.calls import Calls
from containerd_py.tasks import shim_events
from oci import errors
from protos import ttrpc
from protos.containerd import event_types_pb2, shim_events_pb2, types_pb2


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(body(), 10)

    asyncio.run(limited())


async def take(subscription: Subscription, count: int) -> list[types_pb2.Envelope]:
    return [await anext(subscription) for _ in range(count)]


def task_exit(id: str, status: int = 0) -> event_types_pb2.TaskExit:
    return event_types_pb2.TaskExit(container_id=id, id=id, exit_status=status)


def envelope(id: str) -> types_pb2.Envelope:
    made = types_pb2.Envelope(namespace="moby", topic="/tasks/exit")
    made.timestamp.seconds = 5
    made.event.type_url = "containerd.events.TaskExit"
    made.event.value = task_exit(id).SerializeToString()
    return made


def test_every_subscriber_sees_everything_in_order_with_bare_type_names() -> None:
    async def body() -> None:
        bus = LocalExchange()
        first, second = bus.subscribe(), bus.subscribe()
        for number in range(100):
            bus.publish("moby", "/tasks/exit", task_exit(f"c{number}", number))
        for subscription in (first, second):
            seen = await take(subscription, 100)
            assert {e.event.type_url for e in seen} == {"containerd.events.TaskExit"}
            statuses = [event_types_pb2.TaskExit.FromString(e.event.value).exit_status for e in seen]
            assert statuses == list(range(100))

    run(body)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["a", "b", "c"]),
        (["namespace==moby"], ["a", "c"]),
        (["topic==/tasks/start"], ["c"]),
        (["namespace==k8s.io", "topic==/tasks/start"], ["b", "c"]),
        (["namespace==moby,topic==/tasks/exit"], ["a"]),
        (["event.container_id==b"], ["b"]),
        (['topic~="^/tasks/"'], ["a", "b", "c"]),
    ],
)
def test_filters(filters: list[str], expected: list[str]) -> None:
    async def body() -> None:
        bus = LocalExchange()
        subscription = bus.subscribe(filters)
        bus.publish("moby", "/tasks/exit", task_exit("a"))
        bus.publish("k8s.io", "/tasks/exit", task_exit("b"))
        bus.publish("moby", "/tasks/start", event_types_pb2.TaskStart(container_id="c"))
        seen = await take(subscription, len(expected))
        assert [event_types_pb2.TaskStart.FromString(e.event.value).container_id for e in seen] == expected
        subscription.close()
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)

    run(body)


def test_bad_filter_and_bad_topics_are_refused() -> None:
    async def body() -> None:
        bus = LocalExchange()
        with pytest.raises(errors.InvalidArgument):
            bus.subscribe(["topic=="])

    run(body)
    for topic in ("", "/", "tasks/exit", "/tasks//exit", "/tasks/"):
        with pytest.raises(errors.InvalidArgument):
            check_topic(topic)


def test_forwarded_twice_is_published_once() -> None:
    async def body() -> None:
        bus = LocalExchange()
        subscription = bus.subscribe()
        assert bus.forward(envelope("a")) is True
        assert bus.forward(envelope("a")) is False
        assert bus.forward(envelope("b")) is True
        assert len(await take(subscription, 2)) == 2
        with pytest.raises(errors.InvalidArgument):
            bus.forward(types_pb2.Envelope(namespace="moby", topic="/tasks/exit"))

    run(body)


def test_slow_subscriber_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "BACKLOG", 10)

    async def body() -> None:
        bus = LocalExchange()
        slow = bus.subscribe()
        for number in range(11):
            bus.publish("moby", "/tasks/exit", task_exit(str(number)))
        with pytest.raises(errors.ResourceExhausted):
            await anext(slow)

    run(body)


def test_publishing_from_a_thread() -> None:
    async def body() -> None:
        bus = LocalExchange()
        subscription = bus.subscribe()
        thread = threading.Thread(target=bus.publish, args=("moby", "/tasks/exit", task_exit("a")))
        thread.start()
        assert (await anext(subscription)).topic == "/tasks/exit"
        thread.join()

    run(body)


def test_shim_forwards_over_ttrpc(tmp_path: Path) -> None:
    path = str(tmp_path / "e.sock")

    async def body() -> None:
        bus = LocalExchange()
        subscription = bus.subscribe()
        calls = Calls()
        calls.open()
        close = await shim_events.serve(path, bus, calls)
        reader, writer = await asyncio.open_unix_connection(path)
        payload = shim_events_pb2.ForwardRequest(envelope=envelope("a")).SerializeToString()
        for stream, method in ((1, "Forward"), (3, "Forward"), (5, "Other")):
            writer.write(ttrpc.encode_request(stream, shim_events.SERVICE, method, payload))
        decoder, answers = ttrpc.Decoder(), dict[int, int]()
        while len(answers) < 3:
            for frame in decoder.feed(await reader.read(4096)):
                answers[frame.stream_id] = ttrpc.decode_response(frame).code
        assert answers == {1: 0, 3: 0, 5: errors.Code.UNIMPLEMENTED}
        assert (await anext(subscription)).topic == "/tasks/exit"
        bus.close()
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
        writer.write(b"\xff" * 10)
        assert await reader.read() == b"", "a broken peer is cut off"
        close()

    run(body)
