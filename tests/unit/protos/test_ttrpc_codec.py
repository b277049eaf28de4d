"""ttrpc framing: any chunking gives the same frames, limits hold, messages survive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import ttrpc

FRAMES = st.builds(
    ttrpc.Frame, st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300)
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_frames_survive_any_chunking(frames: list[ttrpc.Frame], cuts: list[int]) -> None:
    stream = b"".join(map(ttrpc.encode_frame, frames))
    decoder, got, at = ttrpc.Decoder(), list[ttrpc.Frame](), 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        got += decoder.feed(stream[at : at + size])
        at += size
    assert got == frames
    assert decoder.pending == 0


@given(
    st.text(max_size=30),
    st.text(max_size=30),
    st.binary(max_size=300),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
    st.integers(0, 2**63 - 1),
)
def test_request_round_trip(service: str, method: str, payload: bytes, metadata: dict[str, str], timeout: int) -> None:
    (frame,) = ttrpc.Decoder().feed(ttrpc.encode_request(7, service, method, payload, metadata, timeout))
    assert (frame.stream_id, frame.kind) == (7, ttrpc.REQUEST)
    assert ttrpc.decode_request(frame) == ttrpc.Request(service, method, payload, timeout, metadata)


def test_response_round_trip() -> None:
    ok, failed = ttrpc.Decoder().feed(ttrpc.encode_response(1, b"abc") + ttrpc.encode_error(3, 5, "no such process"))
    assert ttrpc.decode_response(ok) == ttrpc.Response(0, "", b"abc")
    assert ttrpc.decode_response(failed) == ttrpc.Response(5, "no such process", b"")


def test_known_bytes() -> None:
    assert ttrpc.encode_response(1, b"") == bytes([0, 0, 0, 0, 0, 0, 0, 1, 2, 0])


def test_cut_off_frame_is_pending() -> None:
    decoder = ttrpc.Decoder()
    assert decoder.feed(ttrpc.encode_response(1, b"abc")[:-1]) == []
    assert decoder.pending > 0


def test_oversized_frames_are_refused_both_ways() -> None:
    with pytest.raises(ttrpc.ProtocolError, match="4194305 bytes"):
        ttrpc.Decoder().feed((ttrpc.MAX_DATA + 1).to_bytes(4, "big") + bytes(6))
    with pytest.raises(ttrpc.ProtocolError, match="limit"):
        ttrpc.encode_frame(ttrpc.Frame(1, ttrpc.DATA, 0, bytes(ttrpc.MAX_DATA + 1)))


def test_garbage_in_a_frame_is_a_protocol_error() -> None:
    with pytest.raises(ttrpc.ProtocolError, match="stream 9"):
        ttrpc.decode_request(ttrpc.Frame(9, ttrpc.REQUEST, 0, b"\xff\xff\xff"))
