"""Counters of API calls, named as go-grpc-prometheus names them: ``grpc_server_started_total`` and its kin.

Rule: counting costs two dictionary updates a call and nothing is kept that a page does not show.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import NamedTuple

from google.protobuf.descriptor import MethodDescriptor

from containerd_py.metrics.exposition import Family, Sample
from oci.errors import Code

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends in seconds, Prometheus' default ones."""


class Method(NamedTuple):
    """A method as the labels have it."""

    service: str
    name: str
    kind: str
    """``unary``, ``client_stream``, ``server_stream`` or ``bidi_stream``."""

    def labels(self) -> dict[str, str]:
        return {"grpc_method": self.name, "grpc_service": self.service, "grpc_type": self.kind}


def method_of(method: MethodDescriptor) -> Method:
    """``method`` by its published names."""
    kinds = ("unary", "server_stream"), ("client_stream", "bidi_stream")
    kind = kinds[method.client_streaming][method.server_streaming]
    return Method(method.containing_service.full_name, method.name, kind)


def code_name(code: Code | None) -> str:
    """The name Go has for a status: ``NotFound``, ``Canceled``, ``OK`` (None)."""
    return "OK" if code is None else code.name.title().replace("_", "")


class Rpcs:
    """What has been asked so far, and how it ended."""

    def __init__(self) -> None:
        self.started: Counter[Method] = Counter()
        self.handled: Counter[tuple[Method, Code | None]] = Counter()
        self.received: Counter[Method] = Counter()
        self.sent: Counter[Method] = Counter()
        self.seconds: dict[Method, list[float]] | None = None
        """Per method: counts of ``BUCKETS`` and of what is above, then the sum. None: not asked for."""

    def known(self, method: Method) -> None:
        """Show ``method`` before its first call, too."""
        self.started[method] += 0

    def ended(self, method: Method, code: Code | None, seconds: float) -> None:
        """A call is over; ``code`` None: it went well."""
        self.handled[method, code] += 1
        if self.seconds is not None:
            counts = self.seconds.setdefault(method, [0.0] * (len(BUCKETS) + 2))
            counts[bisect.bisect_left(BUCKETS, seconds)] += 1
            counts[-1] += seconds

    def families(self) -> list[Family]:
        """The counters of now."""
        handled = [
            Sample(value, {"grpc_code": code_name(code), **method.labels()})
            for (method, code), value in self.handled.items()
        ]
        return [
            Family(
                "grpc_server_handled_total",
                "counter",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                handled,
            ),
            _counter(
                "grpc_server_msg_received_total", "Total number of RPC messages received on the server.", self.received
            ),
            _counter("grpc_server_msg_sent_total", "Total number of RPC messages sent by the server.", self.sent),
            _counter("grpc_server_started_total", "Total number of RPCs started on the server.", self.started),
            Family(
                "grpc_server_handling_seconds",
                "histogram",
                "Histogram of response latency (seconds) of RPCs that had been handled by the server.",
                [sample for method, counts in (self.seconds or {}).items() for sample in _histogram(method, counts)],
            ),
        ]


def _counter(name: str, help_text: str, counts: Counter[Method]) -> Family:
    return Family(name, "counter", help_text, [Sample(value, method.labels()) for method, value in counts.items()])


def _histogram(method: Method, counts: list[float]) -> list[Sample]:
    labels, total, samples = method.labels(), 0.0, []
    for end, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=False):
        total += count
        samples.append(Sample(total, {**labels, "le": end}, "_bucket"))
    return [*samples, Sample(counts[-1], labels, "_sum"), Sample(total, labels, "_count")]


RPCS = Rpcs()
"""The calls of this process: its servicers exist once, so do their counters."""
