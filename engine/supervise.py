"""gantryd's own containerd-py: adopt the one that answers, start one where none does, start it again when it dies.

Rule: containerd-py runs in a session of its own and never ends because gantryd did. It is started before anything heavy
is imported here (asyncio, structlog), so that the two starts overlap.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from oci.errors import Unavailable
from oci.hostpaths import HostPaths

RESTART_PAUSE = 0.5
"""Seconds between a death of containerd-py and the next try to start it."""


def answers(address: str) -> bool:
    """Whether something accepts connections on the unix socket ``address``."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(2)
        return probe.connect_ex(address) == 0


def has_mounts_below(directory: str) -> bool:
    """Whether something is mounted in ``directory``: then nothing in it may be removed by name."""
    prefix = f"{os.path.realpath(directory)}/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split()[4].startswith(prefix) for line in file)


class Supervisor:
    """Keeps one containerd-py alive at ``paths.containerd_address``."""

    def __init__(self, paths: HostPaths, *, log_level: str, registry: tuple[str, ...] = ()) -> None:
        """``registry`` are containerd-py's own registry flags, passed on."""
        self._paths = paths
        self._log_level = log_level
        self._registry = registry
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    def ensure(self) -> bool:
        """Start containerd-py unless one answers; whether one was started. Does not wait for it to answer."""
        paths = self._paths
        if answers(paths.containerd_address):
            return False
        os.makedirs(paths.containerd_root, mode=0o711, exist_ok=True)
        os.makedirs(paths.containerd_state, mode=0o711, exist_ok=True)
        command = [sys.executable, "-m", "containerd_py.main", "--root", paths.containerd_root]
        command += ["--state", paths.containerd_state, "--address", paths.containerd_address]
        command += ["--log-level", self._log_level, *self._registry]
        with open(f"{paths.data_root}/containerd-py.log", "ab") as sink:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True, cwd="/"
            )
        return True

    async def reconfigure(self, *, log_level: str, registry: tuple[str, ...]) -> None:
        """Other flags for containerd-py: it is ended, and ``watch`` starts it with them. Containers go on."""
        if (log_level, registry) == (self._log_level, self._registry):
            return
        self._log_level, self._registry = log_level, registry
        with contextlib.suppress(OSError, ValueError), open(f"{self._paths.containerd_state}/containerd.pid") as file:
            os.kill(int(file.read()), signal.SIGTERM)

    def check_started(self) -> None:
        """Raise ``Unavailable`` with the log's last line when the containerd-py just started has ended again.

        Not when another one was starting already (its engine was killed): that one will answer.
        """
        if self._child is not None and self._child.poll() is not None and not self._is_held():
            path = f"{self._paths.data_root}/containerd-py.log"
            with contextlib.suppress(OSError), open(path, "rb") as file:
                lines = file.read()[-4096:].decode(errors="replace").strip().splitlines()
                raise Unavailable(
                    f"containerd-py ended with status {self._child.returncode}: {lines[-1] if lines else 'no output'}",
                    hint=f"its log is {path}",
                )

    def _is_held(self) -> bool:
        """Whether a containerd-py lives in our directory: it holds its pidfile's lock, answering or not yet."""
        try:
            descriptor = os.open(f"{self._paths.containerd_state}/containerd.pid", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    async def wait_ready(self, seconds: float = 20) -> None:
        """Wait until the socket accepts; raises ``Unavailable``."""
        import asyncio

        deadline = time.monotonic() + seconds
        while not answers(self._paths.containerd_address):
            self.check_started()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"containerd-py did not listen on {self._paths.containerd_address} within {seconds:g} s",
                    hint=f"its log is {self._paths.data_root}/containerd-py.log",
                )
            await asyncio.sleep(0.01)

    async def shutdown(self) -> None:
        """End containerd-py with every task, shim, the zygote and the keeper; returns when all of them are gone.

        ``watch`` starts nothing again afterwards.
        """
        import asyncio

        import structlog

        log = structlog.get_logger()
        self._ended = True
        paths = self._paths
        command = [sys.executable, "-m", "containerd_py.main", "--root", paths.containerd_root]
        command += ["--state", paths.containerd_state, "--address", paths.containerd_address, "shutdown", "--kill"]
        worker = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/"
        )
        _, said = await worker.communicate()
        if worker.returncode:
            log.error("containerd-py was not shut down wholly", said=said.decode(errors="replace").strip())
        if self._child is not None:
            await asyncio.to_thread(self._child.wait)
        if not has_mounts_below(paths.containerd_state):
            await asyncio.to_thread(shutil.rmtree, paths.containerd_state, ignore_errors=True)

    async def watch(self) -> None:
        """Until cancelled: start containerd-py again whenever its socket stops accepting."""
        import asyncio

        import structlog

        log = structlog.get_logger()
        while True:
            await asyncio.sleep(RESTART_PAUSE)
            if self._child is not None:
                self._child.poll()
            if await asyncio.to_thread(answers, self._paths.containerd_address):
                continue
            if self._ended or (self._child is not None and self._child.returncode is None):
                continue
            log.warning("containerd-py is gone, starting it again", address=self._paths.containerd_address)
            try:
                self.ensure()
                await self.wait_ready()
            except (OSError, Unavailable) as error:
                log.error("containerd-py does not start", error=str(error))
