"""Who we are to a registry: challenges, credentials, and the tokens bought with them.

Rule: a secret goes only to the host that asked for it in a challenge, and to the token service that challenge names;
it is never logged and never part of an error.
Source: RFC 7235 (challenges), distribution's token authentication, Docker's OAuth2 token exchange.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

CLIENT_ID = "gantry"
DEFAULT_LIFE = 60
"""Seconds a token lives when its service does not say (token specification)."""
EARLY = 10
"""Seconds before its end at which a token is no longer used."""

_SCHEME = re.compile(r"\s*,?\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s+|$|(?=,))(?!\s*=)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Credentials(NamedTuple):
    """What a client knows: user and password, or an identity (refresh) token, or a finished header."""

    username: str = ""
    secret: str = ""
    identity_token: str = ""
    header: str = ""

    @property
    def basic(self) -> str:
        """The value of a basic ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


CredentialsSource = Callable[[str, Sequence[str]], Awaitable[Credentials | None]]
"""Asked with (host, the WWW-Authenticate headers) when a registry wants to know; None means nobody in particular."""


class Challenge(NamedTuple):
    """One challenge of a ``WWW-Authenticate`` header; ``scheme`` in lower case."""

    scheme: str
    parameters: dict[str, str]


class Token(NamedTuple):
    """A bearer token and the monotonic time at which it ends."""

    value: str
    ends: float

    def good(self) -> bool:
        """Whether it may still be used."""
        return time.monotonic() < self.ends - EARLY


def challenges(headers: Sequence[str]) -> list[Challenge]:
    """The challenges of all ``headers``, in order; what cannot be read is left out."""
    found: list[Challenge] = []
    for header in headers:
        position = 0
        while (scheme := _SCHEME.match(header, position)) is not None:
            position = scheme.end()
            parameters: dict[str, str] = {}
            while (parameter := _PARAMETER.match(header, position)) is not None:
                quoted, plain = parameter[2], parameter[3]
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                parameters[parameter[1].lower()] = value
                position = parameter.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def scope_of(repository: str, actions: str = "pull") -> str:
    """A token scope: ``repository:library/busybox:pull``."""
    return f"repository:{repository}:{actions}"


def merged_scopes(wanted: Sequence[str], asked: str) -> tuple[str, ...]:
    """The scopes to ask for: ours and the challenge's, each once, sorted."""
    return tuple(sorted({*wanted, *asked.split()}))


def token_query(challenge: Challenge, scopes: Sequence[str], username: str) -> list[tuple[str, str]]:
    """Parameters of a GET to the token service."""
    query = [("scope", scope) for scope in scopes]
    if service := challenge.parameters.get("service"):
        query.insert(0, ("service", service))
    if username:
        query.append(("account", username))
    return query


def refresh_form(challenge: Challenge, scopes: Sequence[str], identity_token: str) -> dict[str, str]:
    """Form of a POST that turns an identity token into an access token."""
    return {
        "grant_type": "refresh_token",
        "refresh_token": identity_token,
        "service": challenge.parameters.get("service", ""),
        "client_id": CLIENT_ID,
        "scope": " ".join(scopes),
    }


def token_of(answer: dict[str, object]) -> Token | None:
    """The token in a token service's answer; None when there is none."""
    value = answer.get("token") or answer.get("access_token")
    if not isinstance(value, str) or not value:
        return None
    life = answer.get("expires_in")
    seconds = life if isinstance(life, int) and life > DEFAULT_LIFE else DEFAULT_LIFE
    return Token(value, time.monotonic() + seconds)
