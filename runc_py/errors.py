"""Errors of the runtime.

Rule: every failure of an operation on a container is a ``RuntimeFailure``; its message is the text that the command
line prints and that Docker's clients look into for ``executable file not found`` and the like.

    RuntimeFailure
    ├── InvalidSpec          config.json, a flag or an id is wrong; the message names the JSON path
    ├── ContainerNotFound    no such container under this root
    ├── ContainerExists      the id is taken
    ├── InvalidState         the container's status does not allow the operation
    ├── ProcessFailure       the container's own program could not be started (exit codes 126 and 127)
    ├── HookFailure          a hook ended with an error or ran out of time
    └── NotBuilt             a part of runc's command line that this runtime does not have
"""

from __future__ import annotations


class RuntimeFailure(Exception):
    """Base of what the runtime raises; ``str()`` is one sentence that names object, operation and cause."""


class InvalidSpec(RuntimeFailure):
    """The input is wrong, nothing was touched."""


class ContainerNotFound(RuntimeFailure):
    """There is no container of that id under the runtime's root."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"container {container_id} does not exist")


class ContainerExists(RuntimeFailure):
    """Another container has the id."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"container with id exists: {container_id}")


class InvalidState(RuntimeFailure):
    """The container's status does not allow the operation."""


class ProcessFailure(RuntimeFailure):
    """The program asked for cannot be found or executed in the container."""


class HookFailure(RuntimeFailure):
    """A lifecycle hook failed."""


class NotBuilt(RuntimeFailure):
    """This part of the command line is not built."""


def warn(text: str) -> None:
    """Called with what went wrong but is no failure; the command line puts its log here."""


BY_NAME: dict[str, type[RuntimeFailure]] = {
    kind.__name__: kind for kind in (RuntimeFailure, InvalidSpec, InvalidState, ProcessFailure, HookFailure, NotBuilt)
}
"""Kinds that cross from a child process to its parent by name."""
