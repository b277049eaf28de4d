"""``NOTIFY_SOCKET`` of sd_notify(3), passed on to a container.

Rule: the service manager's own socket never enters the container. It gets a directory of its container's state, mounted
where ``NOTIFY_SOCKET`` pointed, with a socket of ours in it; of what comes there, only that the service is ready goes
further, with the pid that the manager should know (as crun and runc do).
"""

from __future__ import annotations

import select
import socket
from typing import Any

from runc_py.errors import RuntimeFailure
from runc_py.light import os

DIRECTORY = "notify"
NAME = "notify"


def wanted() -> str:
    """The path this process was told to notify, or ""; abstract sockets have no directory to mount."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    return path if path.startswith("/") else ""


def add_to_spec(spec: dict[str, Any], directory: str, path: str) -> dict[str, Any]:
    """``spec`` with the directory of the container's socket mounted at ``path`` and the variable that names it."""
    made = f"{directory}/{DIRECTORY}"
    os.mkdir(made, 0o755)
    mount = {
        "destination": path,
        "type": "bind",
        "source": made,
        "options": ["bind", "nosuid", "noexec", "nodev", "rprivate"],
    }
    process = dict(spec["process"])
    kept = [item for item in process.get("env") or () if not item.startswith("NOTIFY_SOCKET=")]
    process["env"] = [*kept, f"NOTIFY_SOCKET={path}/{NAME}"]
    return {**spec, "process": process, "mounts": [*(spec.get("mounts") or ()), mount]}


class Relay:
    """The container's end: made before the program starts, asked until it is ready or gone."""

    def __init__(self, directory: str, target: str) -> None:
        self._target = target
        fd = os.open(f"{directory}/{DIRECTORY}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        path = f"/proc/self/fd/{fd}/{NAME}"
        try:
            if os.path.lexists(path):
                os.unlink(path)
            self._socket.bind(path)
            os.chmod(path, 0o777)
        except OSError as error:
            raise RuntimeFailure(f"cannot make the container's NOTIFY_SOCKET: {error.strerror}") from error
        finally:
            os.close(fd)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def forward(self, pid: int) -> bool:
        """Take one message; when it says READY=1, tell the service manager, with ``pid`` as the service's."""
        data = self._socket.recv(4096)
        if b"READY=1" not in data.split(b"\n"):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            try:
                manager.sendto(b"READY=1\nMAINPID=%d\n" % pid, self._target)
            except OSError as error:
                raise RuntimeFailure(f"cannot notify {self._target}: {error.strerror}") from error
        return True

    def wait(self, pidfd: int, pid: int) -> None:
        """Return once the service is ready or has ended."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.fileno() in ready and self.forward(pid):
                return
            if pidfd in ready:
                return
