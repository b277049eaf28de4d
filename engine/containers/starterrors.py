"""Why a container did not start: the words and the exit code that Docker's clients expect.

Rule: 127 says the program is not there, 126 that it cannot be executed, 128 anything else. Source: Docker's
documentation of ``docker run`` ("Exit status") and the messages of runtimes.
"""

from __future__ import annotations

from oci.errors import FailedPrecondition, GantryError, Internal, InvalidArgument, NotFound, Unavailable

NOT_FOUND, NOT_EXECUTABLE, UNKNOWN = 127, 126, 128

_MISSING = ("executable file not found", "no such file or directory", "failed to run runc create/exec call")
_REFUSED = ("permission denied", "is a directory")
_PREFIX = "failed to create task for container: failed to create shim task: "
_MOUNT_HINT = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)


def translated_start(error: GantryError) -> tuple[GantryError, int]:
    """The error as ``docker start`` tells it, and the container's exit code."""
    text = str(error)
    lowered = text.lower()
    runtime = "oci runtime" in lowered
    if not runtime:
        return error, NOT_FOUND if isinstance(error, NotFound) else UNKNOWN
    full = (
        text
        if text.startswith("failed to create task")
        else f"{_PREFIX}{text.removeprefix('failed to create shim task: ')}"
    )
    if any(words in lowered for words in _REFUSED):
        return InvalidArgument(full), NOT_EXECUTABLE
    if "not a directory" in lowered:
        return InvalidArgument(full + _MOUNT_HINT), NOT_FOUND
    if any(words in lowered for words in _MISSING):
        return InvalidArgument(full), NOT_FOUND
    kind = type(error) if isinstance(error, (InvalidArgument, FailedPrecondition, Unavailable)) else Internal
    return kind(full), UNKNOWN


def unknown_if_zero(code: int) -> int:
    """A failed start never counts as success."""
    return code or UNKNOWN
