"""Descriptor packets over a real socket pair, and the attach handshake and frames."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import attach, fdpass


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_descriptors_travel_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    read_end, write_end = os.pipe()
    with left, right:
        fdpass.send(left, {"op": "put"}, [read_end, write_end])
        answer = fdpass.receive(right)
        assert answer is not None
        message, (got_read, got_write) = answer
        assert message == {"op": "put"}
        assert not os.get_inheritable(got_read)
        os.write(got_write, b"through")
        assert os.read(read_end, 20) == b"through"
    fdpass.close_all([read_end, write_end, got_read, got_write])


def test_end_of_file_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.close()
    with right:
        assert fdpass.receive(right) is None


def test_an_error_answer_is_raised(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    with left, right:
        fdpass.send(right, {"error": "no such key"})
        with pytest.raises(fdpass.PeerError, match="no such key"):
            fdpass.call(left, {"op": "get"})


def test_a_malformed_packet_loses_no_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    before = len(os.listdir("/proc/self/fd"))
    with left, right:
        socket.send_fds(left, [b"not json"], [0, 1, 2])
        with pytest.raises(fdpass.PeerError, match="not JSON"):
            fdpass.receive(right)
        assert len(os.listdir("/proc/self/fd")) == before


def test_limits_are_errors_before_anything_is_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    with left, right, pytest.raises(ValueError, match="33 descriptors"):
        fdpass.send(left, {}, [0] * 33)


def test_attach_handshake_round_trip() -> None:
    request = attach.AttachRequest(stdin=True, stdout=True, stdout_offset=7)
    assert attach.decode_request(attach.encode_request(request)) == request
    reply = attach.AttachReply(3, 4)
    assert attach.decode_reply(attach.encode_reply(reply)) == reply


@pytest.mark.parametrize("line", [b"", b"[]", b"nonsense", b'{"stdin":1}', b'{"stdout_offset":true}'])
def test_a_bad_attach_request_is_refused(line: bytes) -> None:
    with pytest.raises(attach.HandshakeError):
        attach.decode_request(line)


def test_the_servers_error_is_raised() -> None:
    with pytest.raises(attach.HandshakeError, match="no stdin"):
        attach.decode_reply(attach.encode_error("no stdin"))


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=50)), max_size=10), st.integers(1, 30)
)
def test_frames_survive_any_chunking(frames: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(attach.frame_header(kind, len(data)) + data for kind, data in frames)
    decoder = attach.FrameDecoder()
    pieces = [piece for at in range(0, len(stream), size) for piece in decoder.feed(stream[at : at + size])]
    for kind in (1, 2):
        assert b"".join(d for k, d in pieces if k == kind) == b"".join(d for k, d in frames if k == kind)
