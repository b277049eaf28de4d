"""A process that applies a layer while another one still writes it.

Rule: it sees nothing but its target, as every process that unpacks; how it ended is known to the writer alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

from containerd_py.diff.apply import write_all
from oci import tar
from oci.errors import GantryError, Internal, from_code

_PIPE = 1 << 20


class Twin:
    """Forked at once, so that no thread may run yet. ``enter`` makes the target its root, ``apply`` reads the tar."""

    def __init__(self, enter: Callable[[], None], apply: Callable[[tar.Read], None]) -> None:
        archive, self._archive = os.pipe2(os.O_CLOEXEC)
        self._answer, answer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._archive, fcntl.F_SETPIPE_SZ, _PIPE)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._archive)
            os.close(self._answer)
            _run(enter, apply, archive, answer)
        os.close(archive)
        os.close(answer)

    def write(self, data: bytes) -> None:
        """More of the archive. Raises what ended the other process."""
        try:
            write_all(self._archive, data)
        except BrokenPipeError:
            self.finish()
            raise Internal("layer worker: the process that unpacks ended before the archive did") from None

    def finish(self) -> None:
        """Return when everything is applied. Raises what went wrong there."""
        os.close(self._archive)
        with os.fdopen(self._answer, "rb") as answers:
            said = answers.read()
        os.waitpid(self._pid, 0)
        if not said:
            raise Internal("layer worker: the process that unpacks ended without an answer (was it killed?)")
        answer: dict[str, Any] = json.loads(said)
        if answer:
            error = from_code(answer["error"], answer["message"])
            error.hint = answer["hint"]
            raise error


def _run(enter: Callable[[], None], apply: Callable[[tar.Read], None], archive: int, answer: int) -> NoReturn:
    said: dict[str, Any] = {}
    try:
        enter()
        apply(lambda size: os.read(archive, size))
    except GantryError as error:
        said = failure(error)
    except Exception as error:  # the answer is the only way out of this process
        said = failure(Internal(f"layer worker: {type(error).__name__}: {error}"))
    finally:
        os.write(answer, json.dumps(said).encode())
        os._exit(0)


def failure(error: GantryError) -> dict[str, Any]:
    """An error as processes say it to each other."""
    return {"error": int(error.code), "message": error.message, "hint": error.hint}
