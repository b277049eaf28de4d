"""A warm runtime: what the zygote's shims do for a container, as a process that makes one for each line it reads.

Rule: it imports what the zygote imports, once, and forks for each container; a line is a container's id, the answer its
exit status.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

from runc_py.runtime import Runtime


def serve(root: str, bundle: str) -> None:
    """Answer until the end of the input."""
    importlib.import_module("runc_py.warm")
    runtime = Runtime(root)
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            os._exit(_run(runtime, line.decode().strip(), bundle))
        _, status = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


def _run(runtime: Runtime, container_id: str, bundle: str) -> int:
    launched = runtime.create(container_id, bundle)
    runtime.start(container_id)
    _, status = os.waitpid(launched.pid, 0)
    runtime.delete(container_id, force=True)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
