"""Another machine on a wire to a private host: a network namespace with a process that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from tests.support.host import DEFAULT_TIMEOUT, PrivateHost, wait_for

HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"


class OutsideMachine:
    """At ``OUTSIDE`` and ``OUTSIDE6``, its default routes lead to the host; a context manager."""

    def __init__(self, host: PrivateHost) -> None:
        self._host = host
        self._holder: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> OutsideMachine:
        host = self._host
        self._holder = host.popen("unshare", "--net", "sleep", "86400", stdin=subprocess.DEVNULL)
        wait_for(lambda: host.pids_of("sleep 86400"), "the other machine")
        wait_for(self._apart, "the other machine's namespace")
        inner = host.inner_pid(self._pid)
        host.check("ip", "link", "add", "wire", "type", "veth", "peer", "name", "eth0", "netns", inner)
        for words in (f"addr add {HOST}/24 dev wire", f"addr add {HOST6}/64 dev wire nodad", "link set wire up"):
            host.check("ip", *words.split())
        for words in (
            "link set lo up",
            f"addr add {OUTSIDE}/24 dev eth0",
            f"addr add {OUTSIDE6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {HOST}",
            f"-6 route add default via {HOST6}",
        ):
            self.check("ip", *words.split())
        return self

    def _apart(self) -> bool:
        for pid in self._host.pids_of("sleep 86400"):
            if os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{self._host.pid}/ns/net"):
                self._pid = pid
                return True
        return False

    def __exit__(self, *exception: object) -> None:
        assert self._holder is not None
        os.kill(self._pid, signal.SIGKILL)
        self._holder.wait()
        self._host.run("ip", "link", "delete", "wire")

    def command(self, *arguments: str) -> list[str]:
        """``arguments`` as a command line that runs on that machine, on the host's files."""
        return ["nsenter", "-t", self._host.inner_pid(self._pid), "--net", "--", *arguments]

    def run(self, *arguments: str, timeout: float = DEFAULT_TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end."""
        return self._host.run(*self.command(*arguments), timeout=timeout)

    def check(self, *arguments: str) -> str:
        """Run a program there that must succeed; its stdout."""
        return self._host.check(*self.command(*arguments))

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program there."""
        return self._host.popen(*self.command(*arguments), **options)

    def get(self, url: str, seconds: float = 20) -> str:
        """The body at ``url``; "" when it cannot be had."""
        return self.run("curl", "-gs", "-m", str(seconds), url).stdout
