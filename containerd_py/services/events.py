"""``containerd.services.events.v1``: publish, forward, and subscribe across namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from containerd_py.exchange import LocalExchange
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.rpcs import EventsServicer
from protos.containerd import events_pb2, types_pb2


@served(events_pb2.DESCRIPTOR.services_by_name["Events"])
class EventsService(EventsServicer):
    """The exchange over gRPC."""

    def __init__(self, exchange: LocalExchange) -> None:
        self._exchange = exchange

    async def Publish(self, request: events_pb2.PublishRequest, context: Context) -> Empty:
        """Stamp and hand on an event of the caller's namespace."""
        self._exchange.publish_packed(scope(context).namespace, request.topic, request.event)
        return Empty()

    async def Forward(self, request: events_pb2.ForwardRequest, context: Context) -> Empty:
        """Hand on an envelope as it is."""
        self._exchange.forward(request.envelope)
        return Empty()

    async def Subscribe(
        self, request: events_pb2.SubscribeRequest, context: Context
    ) -> AsyncIterator[types_pb2.Envelope]:
        """Events from now on. Initial metadata is sent at once: a client that has it will miss nothing."""
        subscription = self._exchange.subscribe(request.filters)
        try:
            await context.send_initial_metadata(())
            async for envelope in subscription:
                yield envelope
        finally:
            subscription.close()
