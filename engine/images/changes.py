"""``--change``: Dockerfile instructions applied to an image's configuration (import and commit).

Rule: the builder's own parser and meanings do the work; here is only which instructions Docker allows there. Source:
docs.docker.com "docker commit", --change.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.build.dockerfile.errors import DockerfileError
from engine.build.dockerfile.instructions import go_duration, typed
from engine.build.dockerfile.parser import Instruction, parse
from engine.build.state import State, changed
from oci.errors import InvalidArgument
from oci.image import ExecutionConfig, ImageConfig, RootFS

ALLOWED = frozenset(
    ["CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"]
)


def apply_changes(config: ExecutionConfig, changes: Iterable[str]) -> ExecutionConfig:
    """``config`` after every instruction; raises ``InvalidArgument`` naming what is wrong."""
    state = State(config, ImageConfig("", "", RootFS(())), "\\")
    for change in changes:
        try:
            for instruction in _instructions(change):
                state = changed(state, typed(instruction), {}, {})
        except DockerfileError as error:
            # There is no file, and no line of it.
            raise InvalidArgument(error.reason, hint=error.hint) from None
    return state.config


def _instructions(change: str) -> tuple[Instruction, ...]:
    if not change.strip():
        return ()
    word = change.split(None, 1)[0]
    if word.upper() not in ALLOWED:
        raise InvalidArgument(f"{word.lower()} is not a valid change command")
    found = parse(change).instructions
    for instruction in found:
        if instruction.keyword not in ALLOWED:
            raise InvalidArgument(f"{instruction.keyword.lower()} is not a valid change command")
    return found


def duration(text: str) -> int:
    """Go's ``1m30s`` in nanoseconds; raises ``InvalidArgument``."""
    try:
        return go_duration(text)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
