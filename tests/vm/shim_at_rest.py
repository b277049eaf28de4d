"""A shim at rest on a kernel that does not tell exit statuses by pidfd (before Linux 6.15): the zygote does."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protos import fdpass, ttrpc
from protos.shim_messages import TASK_METHODS

_SECONDS = 60.0


class Zygote:
    """A zygote with its keeper in ``directory``, whose shims are at rest soon."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "/gantry"), "GANTRY_SHIM_REST": "0.2"}
        flags = ("--socket", str(directory / "zygote"), "--keeper", str(directory / "keeper"))
        self._process = subprocess.Popen([sys.executable, "-m", "shim.zygote", *flags], env=environment)
        until(self._answers, "the zygote")

    def _answers(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            fdpass.connect(str(self.directory / "zygote")).close()
            return True
        return False

    def shim(self, bundle: Path) -> str:
        """Start a shim for ``bundle``; the path of its socket."""
        path = str(self.directory / "shim")
        names = {"namespace": "vm", "id": bundle.name, "bundle": str(bundle), "socket": path}
        with fdpass.connect(str(self.directory / "zygote"), timeout=_SECONDS) as peer:
            fdpass.call(peer, {"op": "start", **names, "keeper": str(self.directory / "keeper")})
        return path

    def end(self) -> None:
        """End zygote and keeper."""
        for name in ("zygote", "keeper"):
            with fdpass.connect(str(self.directory / name)) as peer:
                fdpass.call(peer, {"op": "shutdown"})
        self._process.wait(_SECONDS)


class Client:
    """One call at a time to a shim."""

    def __init__(self, path: str) -> None:
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peer.settimeout(_SECONDS)
        self._peer.connect(path)
        self._stream = 1

    def send(self, method: str, values: dict[str, Any]) -> None:
        payload = TASK_METHODS[method].request.encode(values)
        self._peer.sendall(ttrpc.encode_request(self._stream, "containerd.task.v2.Task", method, payload, {}))
        self._stream += 2

    def receive(self, method: str) -> dict[str, Any]:
        decoder = ttrpc.Decoder()
        frames: list[ttrpc.Frame] = []
        while not frames:
            frames = decoder.feed(self._peer.recv(1 << 16))
        response = ttrpc.decode_response(frames[0])
        assert not response.code, response.message
        return TASK_METHODS[method].response.decode(response.payload)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        self.send(method, values)
        return self.receive(method)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def _has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def check(directory: Path, bundle: Path, spec: dict[str, Any]) -> None:
    """A container in ``bundle`` ends with 7 while its shim is at rest, and one is killed; both are known."""
    zygote = Zygote(directory)
    try:
        for script, number, status in (("read x; exit 7", 0, 7), ("sleep 1000", signal.SIGKILL, 137)):
            spec["process"]["args"] = ["sh", "-c", script]
            (bundle / "config.json").write_text(json.dumps(spec))
            fifo = bundle / "in"
            os.mkfifo(fifo)
            client = Client(zygote.shim(bundle))
            pid = client.call("Create", id=bundle.name, bundle=str(bundle), stdin=str(fifo))["pid"]
            client.call("Start", id=bundle.name)
            client.send("Wait", {"id": bundle.name})
            shim = int((bundle / "shim.pid").read_text())
            until(functools.partial(_has_ended, shim), "the hand-over")
            if number:
                os.kill(pid, number)
            else:
                with open(os.open(fifo, os.O_RDWR), "wb", buffering=0) as writer:
                    writer.write(b"x\n")
            assert client.receive("Wait")["exit_status"] == status
            client.call("Delete", id=bundle.name)
            client.call("Shutdown", id=bundle.name, now=True)
            until(lambda: not Path(zygote.directory / "shim").exists(), "the shim's end")
            for name in ("in", "shim.lock", "options.json"):
                (bundle / name).unlink()
            for name in ("processes", "exits"):
                subprocess.run(["rm", "-r", str(bundle / name)], check=True)
    finally:
        zygote.end()
