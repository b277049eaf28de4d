"""The event bus of containerd-py: everything that happens, to everybody who asked.

Rule: publishing never waits and never fails because of a subscriber. Each subscriber has a queue of its own; one that
falls ``BACKLOG`` events behind is cut off with ``ResourceExhausted``, so that it knows to look at the state again
instead of missing events silently.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

import containerd_py.filters as filter_language
from oci import errors
from protos.containerd import event_types_pb2, types_pb2

BACKLOG = 65536
"""Events a subscriber may fall behind; at about 300 bytes each this bounds a queue to some 20 MB."""

REMEMBERED = 4096
"""Forwarded events remembered to drop those a shim sends again because it never saw the acknowledgement."""

Matcher = Callable[[types_pb2.Envelope], bool]


class Subscription:
    """Async iterator over the envelopes published since its creation. ``close`` ends it; idempotent."""

    def __init__(self, exchange: LocalExchange, matches: Matcher | None) -> None:
        self._exchange = exchange
        self._matches = matches
        self._queue: deque[types_pb2.Envelope] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._overrun = False
        self._closed = False

    def offer(self, envelope: types_pb2.Envelope) -> None:
        """Queue ``envelope`` if it matches."""
        if self._overrun or (self._matches is not None and not self._matches(envelope)):
            return
        if len(self._queue) >= BACKLOG:
            self._overrun = True
            self._queue.clear()
        else:
            self._queue.append(envelope)
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._exchange.remove(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> types_pb2.Envelope:
        """The next event. Raises ``ResourceExhausted`` after an overrun."""
        while not self._queue:
            if self._overrun:
                self.close()
                raise errors.ResourceExhausted(
                    f"event subscriber fell {BACKLOG} events behind and was cut off",
                    hint="subscribe again and read the current state",
                )
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._queue.popleft()


class LocalExchange:
    """The ``Exchange`` of this process. Create it inside the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscriptions: list[Subscription] = []
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Wrap ``event`` in an envelope stamped now and hand it on. Callable from any thread."""
        packed = AnyMessage(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())
        self.publish_packed(namespace, topic, packed)

    def publish_packed(self, namespace: str, topic: str, event: AnyMessage) -> None:
        """``publish`` for an event that comes as an ``Any`` already. Raises ``InvalidArgument`` for a bad topic."""
        check_topic(topic)
        self._hand_on(_stamped(namespace, topic, event))

    def forward(self, envelope: types_pb2.Envelope) -> bool:
        """Take an envelope that somebody else stamped. False when the same one was taken before.

        Raises ``InvalidArgument`` when topic, namespace or timestamp are missing.
        """
        check_topic(envelope.topic)
        if not envelope.namespace:
            raise errors.InvalidArgument(f"event {envelope.topic}: the envelope has no namespace")
        if not envelope.HasField("timestamp"):
            raise errors.InvalidArgument(f"event {envelope.topic}: the envelope has no timestamp")
        key = hashlib.blake2b(envelope.SerializeToString(deterministic=True), digest_size=16).digest()
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self._hand_on(envelope)
        return True

    def subscribe(self, filters: Iterable[str] = ()) -> Subscription:
        """Events from now on, of all namespaces, that match one of ``filters``. Raises ``InvalidArgument``."""
        subscription = Subscription(self, compile_filters(tuple(filters)))
        self._subscriptions.append(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End every subscription."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def _hand_on(self, envelope: types_pb2.Envelope) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._deliver(envelope)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, envelope)

    def _deliver(self, envelope: types_pb2.Envelope) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.offer(envelope)


def _stamped(namespace: str, topic: str, event: AnyMessage) -> types_pb2.Envelope:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    envelope = types_pb2.Envelope(namespace=namespace, topic=topic, event=event)
    envelope.timestamp.seconds = seconds
    envelope.timestamp.nanos = nanos
    return envelope


def check_topic(topic: str) -> None:
    """Raises ``InvalidArgument`` unless ``topic`` is ``/`` followed by non-empty components."""
    if not topic.startswith("/") or not all(topic[1:].split("/")):
        raise errors.InvalidArgument(f"event topic {topic!r} must be one or more components, each after a slash")


def compile_filters(expressions: tuple[str, ...]) -> Matcher | None:
    """A matcher for any of ``expressions`` over ``namespace``, ``topic`` and ``event.<field>``; None matches all."""
    if not expressions:
        return None
    matches = filter_language.compile_filters(expressions)

    def matcher(envelope: types_pb2.Envelope) -> bool:
        return matches(lambda path: field_of(envelope, path))

    return matcher


def field_of(envelope: types_pb2.Envelope, path: tuple[str, ...]) -> str | None:
    """The field a filter names, as text; None when the envelope has no such field."""
    match path:
        case ("namespace",):
            return envelope.namespace or None
        case ("topic",):
            return envelope.topic or None
        case ("event", name):
            return _event_field(envelope.event, name)
    return None


def _event_field(packed: AnyMessage, name: str) -> str | None:
    message_name = packed.type_url.rpartition("/")[2].rpartition(".")[2]
    kind = getattr(event_types_pb2, message_name, None)
    if kind is None or kind.DESCRIPTOR.full_name != packed.type_url.rpartition("/")[2]:
        return None
    field = kind.DESCRIPTOR.fields_by_name.get(name)
    if field is None or field.message_type is not None:
        return None
    try:
        value = getattr(kind.FromString(packed.value), name)
    except DecodeError:
        return None
    return str(value) if value else None
