"""The error taxonomy of every room above the runtime.

Rule: code raises these and only the edge of a process turns them into a wire's own form. Each wire has exactly one
table: gRPC and ttrpc share the numbers of ``Code`` (they are the canonical gRPC status codes), HTTP's table lives in
``engine.http.errors``. An error names the object, the operation and the cause in its message, and the next step in
``hint``.

    GantryError
    ├── InvalidArgument      the request itself is wrong
    ├── NotFound             the named object is not there
    ├── AlreadyExists        the name is taken
    ├── FailedPrecondition   the object is not in a state that allows this (Docker's "conflict")
    ├── PermissionDenied     refused by policy or by the kernel
    ├── Unauthenticated      credentials are missing or wrong
    ├── ResourceExhausted    disk, memory, addresses, rate limit
    ├── OutOfRange           an offset or a size that does not fit
    ├── Aborted              lost a race; trying again may work
    ├── Canceled             the caller went away
    ├── DeadlineExceeded     too slow
    ├── Unimplemented        not built; says so
    ├── Unavailable          a peer cannot be reached now
    ├── DataLoss             a digest or a checksum does not match
    └── Internal             a bug or an unexpected answer of a peer
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Canonical status codes (grpc ``status.proto``); the numbers cross the wire."""

    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GantryError(Exception):
    """Base of every error that may cross a process boundary.

    ``message`` reads as one sentence without a final stop, in Docker's style; ``hint`` says what to do next.
    """

    code: Code = Code.UNKNOWN

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidArgument(GantryError):
    code = Code.INVALID_ARGUMENT


class NotFound(GantryError):
    code = Code.NOT_FOUND


class AlreadyExists(GantryError):
    code = Code.ALREADY_EXISTS


class FailedPrecondition(GantryError):
    code = Code.FAILED_PRECONDITION


class PermissionDenied(GantryError):
    code = Code.PERMISSION_DENIED


class Unauthenticated(GantryError):
    code = Code.UNAUTHENTICATED


class ResourceExhausted(GantryError):
    code = Code.RESOURCE_EXHAUSTED


class OutOfRange(GantryError):
    code = Code.OUT_OF_RANGE


class Aborted(GantryError):
    code = Code.ABORTED


class Canceled(GantryError):
    code = Code.CANCELED


class DeadlineExceeded(GantryError):
    code = Code.DEADLINE_EXCEEDED


class Unimplemented(GantryError):
    code = Code.UNIMPLEMENTED


class Unavailable(GantryError):
    code = Code.UNAVAILABLE


class DataLoss(GantryError):
    code = Code.DATA_LOSS


class Internal(GantryError):
    code = Code.INTERNAL


BY_CODE: dict[int, type[GantryError]] = {
    int(kind.code): kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        OutOfRange,
        Aborted,
        Canceled,
        DeadlineExceeded,
        Unimplemented,
        Unavailable,
        DataLoss,
        Internal,
    )
}


def from_code(code: int, message: str) -> GantryError:
    """The error a peer meant by status ``code``; unknown codes become plain ``GantryError``."""
    return BY_CODE.get(code, GantryError)(message)
