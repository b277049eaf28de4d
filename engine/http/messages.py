"""Requests and responses as handlers see them.

A handler is ``async def handler(request) -> Response | Hijack``. It raises ``oci.errors`` exceptions; the server turns
them into Docker's error objects. A handler is cancelled when its client disconnects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec

from engine.http import gojson
from oci.errors import InvalidArgument

T = TypeVar("T")

JSON = "application/json"
MAX_JSON = 8 << 20
"""Bytes of JSON a request may carry; bodies that are data (tar streams) go through ``chunks``."""

_FALSE = frozenset({"", "0", "no", "false", "none"})


class Duplex(Protocol):
    """The raw byte stream of a hijacked connection; both directions close on their own."""

    async def read(self, limit: int = 65536) -> bytes:
        """Up to ``limit`` bytes; ``b""`` once the peer has closed its sending half."""

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; waits while the peer is slow; raises ``ConnectionError`` when it is gone."""

    async def write_eof(self) -> None:
        """Close our sending half; reading goes on."""

    async def close(self) -> None:
        """Close both halves. Idempotent."""


@dataclass(slots=True)
class Request:
    """One request. ``query`` and ``params`` are decoded; ``headers`` have lower-case names."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    api_version: tuple[int, int]
    chunks: AsyncIterator[bytes]
    params: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """The first value of query parameter ``name``, as Go's ``url.Values.Get`` takes it."""
        values = self.query.get(name)
        return values[0] if values else default

    def flag(self, name: str, default: bool = False) -> bool:
        """Query parameter ``name`` as Docker reads booleans: empty, 0, no, false and none are false."""
        values = self.query.get(name)
        return values[0].strip().lower() not in _FALSE if values else default

    def number(self, name: str, default: int | None = None) -> int | None:
        """Query parameter ``name`` as an integer; raises ``InvalidArgument`` when it is not one."""
        value = self.text(name)
        if not value:
            return default
        try:
            return int(value)
        except ValueError:
            raise InvalidArgument(f"invalid value {value!r} of query parameter {name}: not an integer") from None

    def filters(self) -> dict[str, list[str]]:
        """The ``filters`` parameter in either of Docker's forms: ``{"k": ["v"]}`` or ``{"k": {"v": true}}``."""
        raw = self.text("filters")
        if not raw:
            return {}
        try:
            decoded = msgspec.json.decode(raw, type=dict[str, list[str] | dict[str, bool]])
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"invalid filters parameter: {error}") from None
        return {k: [x for x in v if not isinstance(v, dict) or v[x]] for k, v in decoded.items()}

    async def body(self, limit: int = MAX_JSON) -> bytes:
        """The whole body; raises ``InvalidArgument`` past ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks:
            size += len(chunk)
            if size > limit:
                raise InvalidArgument(f"request body of {self.method} {self.path} is over {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    async def json(self, kind: type[T]) -> T:
        """The body decoded as ``kind``, as Go would; raises ``InvalidArgument`` naming the JSON path."""
        raw = await self.body()
        if not raw.strip():
            raise InvalidArgument(f"request body of {self.method} {self.path} is empty: JSON expected")
        try:
            return gojson.decode(raw, kind)
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"invalid JSON in the body of {self.method} {self.path}: {error}") from None


@dataclass(slots=True)
class Response:
    """An answer; a streamed ``body`` is sent chunked and closed (``aclose``) when the client goes away."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Hijack:
    """Take the connection over: ``101 UPGRADED`` when the client asked for an upgrade, else ``200 OK``.

    ``run`` owns the stream, which includes bytes the client pipelined behind its request, and is closed after it.
    """

    run: Callable[[Duplex], Awaitable[None]]
    content_type: str = "application/vnd.docker.raw-stream"
    headers: dict[str, str] = field(default_factory=dict)


Answer = Response | Hijack
Handler = Callable[[Request], Awaitable[Answer]]


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``value`` (msgspec-encodable) as a JSON answer."""
    return Response(status, msgspec.json.encode(value), {"Content-Type": JSON, **(headers or {})})


def empty(status: int = 204) -> Response:
    """An answer with no body."""
    return Response(status)


def parse_query(raw: str) -> dict[str, list[str]]:
    """A raw query string as lists of decoded values, blanks kept."""
    return parse_qs(raw, keep_blank_values=True)
