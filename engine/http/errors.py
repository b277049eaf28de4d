"""The one table from the error taxonomy to HTTP status codes (Docker's choices), and the error body's shape."""

from __future__ import annotations

import msgspec

from oci.errors import Code, GantryError

STATUS: dict[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.ABORTED: 409,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}
"""What is not listed is 500, as in Docker."""


class HttpError(Exception):
    """An answer whose status no taxonomy entry has (304, 405, 413); ``message`` may be empty."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def status_of(error: BaseException) -> int:
    """The HTTP status for ``error``."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, GantryError):
        return STATUS.get(error.code, 500)
    return 500


def body_of(error: BaseException) -> bytes:
    """The ``{"message": …}`` object of every Docker error answer; empty for bodiless statuses."""
    if isinstance(error, HttpError):
        return msgspec.json.encode({"message": error.message}) if error.message else b""
    text = str(error) or type(error).__name__
    return msgspec.json.encode({"message": text})
