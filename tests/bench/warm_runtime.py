"""A warm runtime: what the zygote's workers do for a container, as a process that makes one for each line it reads.

Rule: it imports what the zygote imports, once. A process for each container is forked from it ahead of its time, with
the memory that it will write to copied and a waiting init, as ``shim.worker`` is; the run itself is only the runtime's.
A line is a container's id, the answer its exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys

from runc_py import syscalls
from runc_py.cgroups import layout
from runc_py.runtime import Runtime
from runc_py.waiting import WaitingInit
from shim import memory
from shim.worker import Written, parsed

NOTHING = Written([], [])


def serve(root: str, bundle: str) -> None:
    """Answer until the end of the input."""
    importlib.import_module("runc_py.warm")
    gc.collect()
    gc.freeze()
    written = NOTHING
    spare = _fork_spare(root, bundle, written)
    for line in sys.stdin.buffer:
        pid, peer = spare
        peer.sendall(line)
        status, _, report = peer.recv(1 << 20).partition(b"\n")
        os.write(1, status + b"\n")
        peer.close()
        os.waitpid(pid, 0)
        written = parsed(report) or written
        spare = _fork_spare(root, bundle, written)
    spare[1].close()
    os.waitpid(spare[0], 0)


def _fork_spare(root: str, bundle: str, written: Written) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            waiting = None if layout.current().unified else WaitingInit(memory=written.init)
            for start, length in written.worker:
                syscalls.populate(start, length)
            if line := theirs.recv(200):
                theirs.sendall(_run(Runtime(root, waiting=waiting), line.decode().strip(), bundle, written))
        finally:
            os._exit(0)
    theirs.close()
    return pid, ours


def _run(runtime: Runtime, container_id: str, bundle: str, written: Written) -> bytes:
    launched = runtime.create(container_id, bundle)
    report = b""
    if written is NOTHING:
        report = json.dumps([memory.written(), memory.written(launched.pid)]).encode()
    runtime.start(container_id)
    _, status = os.waitpid(launched.pid, 0)
    runtime.delete(container_id, force=True)
    return b"%d\n%s" % (os.waitstatus_to_exitcode(status), report)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
