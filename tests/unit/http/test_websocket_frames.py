"""WebSocket framing against RFC 6455's examples and any split of the bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.http import websocket as ws
from oci.errors import InvalidArgument


def masked(opcode: int, payload: bytes) -> bytes:
    """A frame as clients send them."""
    mask = os.urandom(4)
    head = bytearray(ws.encode(opcode, payload))
    size = len(head) - len(payload)
    head[1] |= 0x80
    return bytes(head[:size]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def test_the_handshake_of_the_rfc() -> None:
    headers = {"upgrade": "websocket", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13"}
    assert ws.accept_headers(headers) == {"Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}
    for name in headers:
        with pytest.raises(InvalidArgument):
            ws.accept_headers({k: v for k, v in headers.items() if k != name})


def test_the_masked_hello_of_the_rfc() -> None:
    assert ws.Parser().feed(bytes.fromhex("818537fa213d7f9f4d5158")) == [ws.Frame(ws.TEXT, b"Hello")]
    assert ws.encode(ws.TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")


@given(st.lists(st.binary(max_size=70000), max_size=4), st.integers(1, 5000))
def test_frames_survive_any_split(payloads: list[bytes], step: int) -> None:
    data = b"".join(masked(ws.BINARY, payload) for payload in payloads)
    parser = ws.Parser()
    found = [frame for at in range(0, len(data), step) for frame in parser.feed(data[at : at + step])]
    assert [frame.payload for frame in found] == payloads


@pytest.mark.parametrize("data", [b"\x81\x05Hello", b"\x82\xff" + b"\xff" * 8])
def test_what_no_client_may_send_ends_the_connection(data: bytes) -> None:
    with pytest.raises(ConnectionError):
        ws.Parser().feed(data)
