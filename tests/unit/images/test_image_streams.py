"""Layers of any compression, credentials, and transfer events as Docker's messages."""

from __future__ import annotations

import asyncio
import base64
import bz2
import gzip
import hashlib
import json
import lzma
from collections.abc import AsyncIterator, Callable

import pytest
import zstandard

from engine.images import credentials
from engine.images.layers import LayerStream
from engine.images.progress import Translator, Words, bar, human
from oci.errors import InvalidArgument
from oci.image import MEDIA_CONFIG, MEDIA_LAYER_GZIP, Descriptor
from protos.containerd import transfer_types_pb2

DATA = bytes(range(256)) * 5000


async def cut(data: bytes, size: int = 7777) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def packed(data: bytes, size: int = 7777) -> tuple[bytes, str]:
    async def run() -> tuple[bytes, str]:
        stream = LayerStream(cut(data, size))
        return b"".join([piece async for piece in stream.pieces()]), stream.diff_id

    return asyncio.run(run())


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:99]) + gzip.compress(data[99:])


@pytest.mark.parametrize("size", [3, 7777])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress, two_members])
def test_any_compression_becomes_gzip_with_the_digest_of_what_is_inside(
    pack: Callable[[bytes], bytes], size: int
) -> None:
    data = DATA if size > 3 else DATA[:1000]
    blob, diff_id = packed(pack(data), size)
    assert gzip.decompress(blob) == data
    assert diff_id == "sha256:" + hashlib.sha256(data).hexdigest()


def test_equal_archives_give_equal_layers() -> None:
    assert packed(DATA) == packed(DATA)


def test_short_and_damaged_archives() -> None:
    assert gzip.decompress(packed(b"ab")[0]) == b"ab"
    with pytest.raises(InvalidArgument, match="compression is damaged"):
        packed(b"\x1f\x8b" + b"\xff" * 100)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_credentials_are_read_and_answered() -> None:
    ask = transfer_types_pb2.AuthRequest(host="x")
    login = credentials.parse(encoded({"username": "u", "password": "p?~"}))
    answer = login.answer(ask)
    assert (answer.authType, answer.username, answer.secret) == (transfer_types_pb2.CREDENTIALS, "u", "p?~")
    assert "p?~" not in repr(login)
    token = credentials.parse(encoded({"identitytoken": "t", "username": "u"})).answer(ask)
    assert (token.authType, token.secret) == (transfer_types_pb2.REFRESH, "t")
    pair = credentials.parse(encoded({"auth": base64.b64encode(b"a:b:c").decode()}))
    assert (pair.username, pair.password) == ("a", "b:c")
    assert credentials.parse("").empty
    assert credentials.parse(encoded({})).answer(ask).authType == transfer_types_pb2.NONE
    with pytest.raises(InvalidArgument):
        credentials.parse("%%%")


LAYER = Descriptor(MEDIA_LAYER_GZIP, "sha256:" + "ab" * 32, 100)
CONFIG = Descriptor(MEDIA_CONFIG, "sha256:" + "cd" * 32, 10)


def said(words: Words, *events: tuple[str, Descriptor, int]) -> list[str]:
    translate = Translator(words)
    return [m["status"] for event, blob, n in events for m in translate(event, blob.digest, n, 0, blob)]


def test_a_pulled_layer_is_told_as_docker_does() -> None:
    events = (("waiting", LAYER, 0), ("waiting", CONFIG, 0), ("downloading", LAYER, 50), ("downloaded", LAYER, 100),
              ("downloaded", LAYER, 100), ("extracting", LAYER, 100), ("extracted", LAYER, 0))  # fmt: skip
    assert said(Translator.PULL, *events) == [
        "Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete",
    ]  # fmt: skip
    assert said(Translator.PULL, ("waiting", LAYER, 0), ("exists", LAYER, 0), ("retrying", LAYER, 1)) == [
        "Already exists", "Retrying in 1 second",
    ]  # fmt: skip
    assert said(Translator.PUSH, ("waiting", LAYER, 0), ("uploaded", LAYER, 0)) == ["Preparing", "Pushed"]


def test_progress_messages_carry_numbers_and_a_bar() -> None:
    (message,) = Translator(Translator.PULL)("downloading", LAYER.digest, 50, 100, LAYER)
    assert message["progressDetail"] == {"current": 50, "total": 100}
    assert (message["id"], message["progress"]) == ("ab" * 6, f"[{'=' * 25}>{' ' * 25}]      50B/100B")
    assert bar(0, 0) == ""
    assert bar(5_000_000, 0) == "     5MB"
    assert human(1_234_567) == "1.235MB"
