"""``X-Registry-Auth``: base64url JSON of a client's credentials, and how containerd is given them.

Rule: credentials live in one request; nothing is stored or logged.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from oci.errors import InvalidArgument
from protos.containerd import transfer_types_pb2


class Credentials(msgspec.Struct, frozen=True):
    """Docker's AuthConfig. ``identitytoken`` is an OAuth2 refresh token, ``registrytoken`` a bearer token."""

    username: str = ""
    password: str = ""
    auth: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, …)"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to log in with."""
        return not (self.username or self.password or self.identitytoken or self.registrytoken)

    def answer(self, request: transfer_types_pb2.AuthRequest) -> transfer_types_pb2.AuthResponse:
        """What containerd is told when a registry wants credentials."""
        types = transfer_types_pb2
        if self.registrytoken:
            return types.AuthResponse(authType=types.HEADER, secret=f"Bearer {self.registrytoken}")
        if self.identitytoken:
            return types.AuthResponse(authType=types.REFRESH, secret=self.identitytoken, username=self.username)
        if self.username:
            return types.AuthResponse(authType=types.CREDENTIALS, username=self.username, secret=self.password)
        return types.AuthResponse(authType=types.NONE)


def parse(header: str) -> Credentials:
    """The credentials in ``header``; none for an empty one. Raises ``InvalidArgument``."""
    if not header:
        return Credentials()
    try:
        raw = base64.b64decode(header + "=" * (-len(header) % 4), altchars=b"-_", validate=True)
        return from_json(raw) if raw.strip() not in (b"", b"null") else Credentials()
    except (binascii.Error, ValueError):
        raise InvalidArgument("invalid X-Registry-Auth header: not base64url JSON") from None


def from_json(raw: bytes) -> Credentials:
    """Credentials from Docker's JSON; ``auth`` (``user:password`` in base64) is taken apart."""
    try:
        found = msgspec.json.decode(raw, type=Credentials)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"invalid X-Registry-Auth header: {error}") from None
    if found.auth and not found.username:
        user, _, password = base64.b64decode(found.auth).decode().partition(":")
        found = msgspec.structs.replace(found, username=user, password=password)
    return found
