"""``python -m engine.network.dns.main DIRECTORY``: serve the records in DIRECTORY until told to stop.

Rule: one server a directory: the lock is held for the life of the process. Ends with no trace but the records.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys

from engine.network.dns.control import Control, socket_path
from engine.network.dns.loop import Loop
from engine.network.dns.server import Server


def main(directory: str) -> int:
    """Run the server; the exit status: 1 when another one has the directory."""
    lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"another DNS server serves {directory}\n")
        return 1
    os.umask(0o077)
    # Four descriptors a container and one a port, of which there may be thousands.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = Loop()
    control = Control(loop, Server(loop), directory)
    # An exception gets out of the wait for events, which a flag would not.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    control.sync()
    control.listen()
    try:
        loop.run()
    finally:
        os.unlink(socket_path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
