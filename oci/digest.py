"""Digests: ``algorithm:hex`` names of content (image-spec ``descriptor.md``, section Digests).

Rule: a digest that came from outside is validated before it becomes part of a path or a URL.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Protocol

from oci.errors import DataLoss, InvalidArgument

SHA256_HEX = re.compile(r"[a-f0-9]{64}")
_HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([A-Za-z0-9=_-]+)")
_LOWER_HEX = re.compile(r"[a-f0-9]+")


class Hasher(Protocol):
    """The part of hashlib's objects that content code uses."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def parse(text: str) -> tuple[str, str]:
    """(algorithm, hex) of ``text``; raises ``InvalidArgument`` when it is no digest we can verify."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"invalid digest {text!r}: expected algorithm:hex")
    length = _HEX_LENGTHS.get(match[1])
    if length is None:
        raise InvalidArgument(f"unsupported digest algorithm {match[1]!r} in {text!r}")
    if len(match[2]) != length or _LOWER_HEX.fullmatch(match[2]) is None:
        raise InvalidArgument(f"invalid digest {text!r}: expected {length} lower-case hex digits")
    return match[1], match[2]


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest that ``parse`` accepts."""
    try:
        parse(text)
    except InvalidArgument:
        return False
    return True


def hasher(digest: str) -> Hasher:
    """A running hash of the algorithm that ``digest`` names."""
    return hashlib.new(parse(digest)[0])


def of_bytes(data: bytes) -> str:
    """The sha256 digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def verify(data: bytes, digest: str, what: str) -> None:
    """Raise ``DataLoss`` naming ``what`` unless ``data`` hashes to ``digest``."""
    algorithm, expected = parse(digest)
    found = hashlib.new(algorithm, data).hexdigest()
    if found != expected:
        raise DataLoss(f"{what}: content has digest {algorithm}:{found}, expected {digest}")


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The chain id of each layer, base first (image-spec ``config.md``, Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(chained(chain[-1] if chain else "", diff_id))
    return chain


def chained(below: str, diff_id: str) -> str:
    """The chain id of a layer upon the chain ``below`` ("" for none)."""
    return of_bytes(f"{below} {diff_id}".encode()) if below else diff_id


def chain_id(diff_ids: Iterable[str]) -> str:
    """The chain id of the whole stack; ``""`` without layers."""
    chain = chain_ids(diff_ids)
    return chain[-1] if chain else ""
