"""What registries answer when they refuse, as ``oci.errors`` in Docker's words.

Rule: the registry's own code and message are kept in the text; the kind of error follows the code first and the HTTP
status second (distribution-spec, section Error Codes).
"""

from __future__ import annotations

import json
import ssl

from oci.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GantryError,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

_BY_ERROR_CODE: dict[str, type[GantryError]] = {
    "BLOB_UNKNOWN": NotFound,
    "MANIFEST_UNKNOWN": NotFound,
    "NAME_UNKNOWN": NotFound,
    "DENIED": PermissionDenied,
    "UNAUTHORIZED": Unauthenticated,
    "TOOMANYREQUESTS": ResourceExhausted,
    "UNSUPPORTED": Unimplemented,
    "DIGEST_INVALID": InvalidArgument,
    "MANIFEST_INVALID": InvalidArgument,
    "NAME_INVALID": InvalidArgument,
    "SIZE_INVALID": InvalidArgument,
    "BLOB_UPLOAD_UNKNOWN": NotFound,
}
_BY_STATUS: dict[int, type[GantryError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: Unimplemented,
    413: OutOfRange,
    429: ResourceExhausted,
}
MAX_TEXT = 400
"""Characters of a body that is not the specified JSON, in a message."""


def registry_messages(body: bytes) -> list[tuple[str, str]]:
    """(code, message) of each error in ``body``; empty when it is not the specified JSON."""
    try:
        document = json.loads(body)
        errors = document.get("errors") or []
        return [(str(e.get("code", "")).upper(), str(e.get("message", ""))) for e in errors]
    except (ValueError, AttributeError, TypeError):
        return []


def describe(messages: list[tuple[str, str]], body: bytes) -> str:
    """``manifest unknown: manifest unknown``: how Docker prints the first error of an answer."""
    if messages:
        code, message = messages[0]
        return f"{code.lower().replace('_', ' ')}: {message}" if message else code.lower().replace("_", " ")
    return body[:MAX_TEXT].decode(errors="replace").strip()


def from_answer(status: int, body: bytes, what: str) -> GantryError:
    """The error for an answer of ``status`` to the request that was to do ``what``."""
    messages = registry_messages(body)
    text = describe(messages, body) or f"unexpected status {status}"
    kind = _BY_ERROR_CODE.get(messages[0][0]) if messages else None
    if kind is None:
        kind = _BY_STATUS.get(status, Unavailable if status >= 500 else FailedPrecondition)
    hint = "the registry limits how often it may be asked: wait, or log in" if kind is ResourceExhausted else ""
    return kind(f"{what}: {text}", hint=hint)


def access_denied(repository: str, verb: str, cause: GantryError) -> GantryError:
    """Docker's sentence for a repository that is private or does not exist (a registry does not tell which)."""
    detail = cause.message.rpartition(": denied: ")[2] if ": denied: " in cause.message else cause.message
    if verb == "push":
        return PermissionDenied(f"push access denied for {repository}: denied: {detail}", hint="docker login")
    why = "repository does not exist or may require 'docker login'"
    return PermissionDenied(f"pull access denied for {repository}, {why}: denied: {detail}")


def from_connection(error: Exception, url: str) -> GantryError:
    """The error for a request that got no answer from ``url``."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = getattr(cause, "verify_message", "") or str(getattr(cause, "certificate_error", cause))
            return Unavailable(
                f'Get "{url}": tls: failed to verify certificate: {why}',
                hint="put the registry's CA into certs.d/<host>/ca.crt, or allow it with --insecure-registry",
            )
        if isinstance(cause, ConnectionRefusedError):
            return Unavailable(f'Get "{url}": connect: connection refused', hint="is the registry running?")
        certificate = getattr(cause, "certificate_error", None)
        cause = (
            certificate
            if isinstance(certificate, BaseException)
            else cause.__cause__ or getattr(cause, "os_error", None)
        )
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f'Get "{url}": timed out waiting for the registry')
    return Unavailable(f'Get "{url}": {str(error) or type(error).__name__}')
