"""PID 1 of a private host: brings loopback up, says it is ready, reaps orphans until it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for tmpfs in sys.argv[1:]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", tmpfs], check=True)
    os.write(1, b"ready\n")
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        signal.sigtimedwait([signal.SIGCHLD], 1)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


if __name__ == "__main__":
    main()
