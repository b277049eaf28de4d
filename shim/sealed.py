"""Running from a sealed copy of the interpreter.

Rule: no process that enters a container's namespaces may have the host's interpreter as ``/proc/<pid>/exe``: a program
in the container could open it for writing once it is no longer being executed (CVE-2019-5736).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Sequence

_MARK = "GANTRY_SEALED"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def interpreter() -> int | None:
    """A memfd that holds this interpreter and cannot be changed any more; ``None`` where that is forbidden."""
    try:
        copy = os.memfd_create("gantry-python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    with open("/proc/self/exe", "rb") as source:
        size = os.fstat(source.fileno()).st_size
        done = 0
        while done < size:
            done += os.sendfile(copy, source.fileno(), done, size - done)
    os.fchmod(copy, 0o500)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    return copy


def execute(module: str, arguments: Sequence[str]) -> None:
    """Become ``module.main()`` in a sealed interpreter with ``arguments``; returns only where that is impossible.

    The interpreter starts isolated and without ``site``: only these packages and the standard library are importable.
    """
    if os.environ.pop(_MARK, None) is not None:
        return
    copy = interpreter()
    if copy is not None:
        rooms = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        program = f"import sys; sys.path.insert(0, {rooms!r}); from {module} import main; sys.exit(main())"
        command = [sys.executable, "-I", "-S", "-c", program, *arguments]
        with contextlib.suppress(OSError):
            os.execve(copy, command, {**os.environ, _MARK: "1"})  # noqa: S606 -- there is no shell to be had here
        os.close(copy)
    sys.stderr.write(
        f"{module}: no sealed copy of the interpreter can be executed here: running from the installed one\n"
    )
