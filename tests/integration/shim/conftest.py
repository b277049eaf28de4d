"""A zygote with its keeper, containerd's side of the event socket, and shims to talk to, in a temporary directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protos import attach, fdpass, ttrpc
from protos import shim_messages as messages
from protos.shim_messages import FORWARD_REQUEST, TASK_METHODS
from protos.wire import Values

ROOT = Path(__file__).resolve().parents[3]
NAMESPACE = "test"
BUSYBOX = Path("/bin/busybox")


class CallError(Exception):
    """A ttrpc status."""

    def __init__(self, response: ttrpc.Response) -> None:
        super().__init__(response.message)
        self.code = response.code


class Client:
    """A blocking ttrpc client; answers may come out of order."""

    def __init__(self, path: str) -> None:
        self.peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.peer.settimeout(20)
        self.peer.connect(path)
        self._decoder = ttrpc.Decoder()
        self._stream = -1
        self._answers: dict[int, ttrpc.Response] = {}
        self._methods: dict[int, str] = {}

    def send(self, method: str, request: Values, service: str = "containerd.task.v2.Task") -> int:
        self._stream += 2
        self._methods[self._stream] = method
        payload = TASK_METHODS[method].request.encode(request)
        self.peer.sendall(ttrpc.encode_request(self._stream, service, method, payload))
        return self._stream

    def receive(self, stream: int) -> Values:
        while stream not in self._answers:
            data = self.peer.recv(65536)
            if not data:
                raise ConnectionError("the shim hung up")
            for frame in self._decoder.feed(data):
                self._answers[frame.stream_id] = ttrpc.decode_response(frame)
        response = self._answers.pop(stream)
        if response.code:
            raise CallError(response)
        return TASK_METHODS[self._methods.pop(stream)].response.decode(response.payload)

    def call(self, method: str, **request: Any) -> Values:
        return self.receive(self.send(method, request))

    def close(self) -> None:
        self.peer.close()


class Events:
    """containerd's event service: records what arrives, may be stopped and started again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: list[tuple[str, Values]] = []
        self.changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._peers: list[socket.socket] = []

    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            os.unlink(self.path)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        self._peers = []
        self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            threading.Thread(target=self._serve, args=[peer], daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        decoder = ttrpc.Decoder()
        tables = {t.name: t for t in vars(messages).values() if isinstance(t, type(FORWARD_REQUEST))}
        with peer, contextlib.suppress(ConnectionError):
            while data := peer.recv(65536):
                for frame in decoder.feed(data):
                    envelope = FORWARD_REQUEST.decode(ttrpc.decode_request(frame).payload)["envelope"]
                    event = tables[envelope["event"]["type_url"]].decode(envelope["event"]["value"])
                    with self.changed:
                        self.seen.append((envelope["topic"], event))
                        self.changed.notify_all()
                    peer.sendall(ttrpc.encode_response(frame.stream_id, b""))

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.seen]

    def wait_for(self, topic: str, count: int = 1) -> Values:
        with self.changed:
            assert self.changed.wait_for(lambda: self.topics().count(topic) >= count, 30), self.seen
        return [event for seen, event in self.seen if seen == topic][count - 1]


class Shim:
    """One running shim and its container."""

    def __init__(self, host: Host, name: str, bundle: Path, pid: int, socket_path: str) -> None:
        self.host, self.name, self.bundle, self.pid, self.socket_path = host, name, bundle, pid, socket_path
        self.client = Client(socket_path)
        self.log = bundle / "rawlog"
        self.attach_path = str(bundle / "at")

    def create(self, **overrides: Any) -> Values:
        request: Values = {
            "id": self.name,
            "bundle": str(self.bundle),
            "stdout": f"rawlog://{self.log}?attach={self.attach_path}",
            "stderr": f"rawlog://{self.log}?attach={self.attach_path}",
            **overrides,
        }
        return self.client.call("Create", **request)

    def start(self) -> Values:
        return self.client.call("Start", id=self.name)

    def wait(self, exec_id: str = "") -> int:
        return int(self.client.call("Wait", id=self.name, exec_id=exec_id)["exit_status"])

    def run(self, **overrides: Any) -> int:
        self.create(**overrides)
        self.start()
        return self.wait()

    def delete(self) -> Values:
        return self.client.call("Delete", id=self.name)

    def output(self, name: str = "stdout") -> bytes:
        return (self.log / name).read_bytes()

    def attach(self, **request: Any) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(10)
        peer.connect(self.attach_path)
        peer.sendall(attach.encode_request(attach.AttachRequest(**request)))
        line = bytearray()
        while not line.endswith(b"\n"):
            line += peer.recv(1)
        attach.decode_reply(bytes(line))
        return peer

    def kill_shim(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists())
        self.client.close()

    def restore(self) -> None:
        self.pid = self.host.zygote({"op": "restore", **self.host.request(self.name, self.bundle, self.socket_path)})[
            "pid"
        ]
        self.client = Client(self.socket_path)
        self.client.call("Connect", id=self.name)  # answered when all is taken over


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def read_all(peer: socket.socket) -> bytes:
    chunks = []
    while chunk := peer.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


class Host:
    """The temporary stand-in for containerd-py's state directory."""

    def __init__(self, state: Path, rootfs: Path, spec: dict[str, Any]) -> None:
        self.state, self.rootfs, self._spec = state, rootfs, spec
        self.events = Events(str(state / "containerd.sock.ttrpc"))
        self.shims: list[Shim] = []
        self._helper: subprocess.Popen[bytes] | None = None
        self._peer: socket.socket | None = None
        self._extra: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.events.start()
        self._helper = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--"),
                *(sys.executable, "-m", "shim.zygote"),
                *("--socket", str(self.state / "zygote.sock"), "--keeper", str(self.state / "keeper.sock")),
            ],
            cwd=ROOT,
            start_new_session=True,
        )
        wait_until(lambda: self._connects("zygote.sock"))
        self._peer = fdpass.connect(str(self.state / "zygote.sock"))

    def _connects(self, name: str) -> bool:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            fdpass.connect(str(self.state / name)).close()
            return True
        return False

    def start_keeper(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """A new keeper, for tests that killed the one of the zygote."""
        command = [sys.executable, "-m", "shim.keeper", "--socket", str(self.state / "keeper.sock")]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        self._extra.append(process)
        if wait:
            wait_until(lambda: self._connects("keeper.sock"))
        return process

    def zygote(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._peer is not None
        return fdpass.call(self._peer, message)[0]

    def keeper(self, message: dict[str, Any]) -> dict[str, Any]:
        with fdpass.connect(str(self.state / "keeper.sock")) as peer:
            answer, descriptors = fdpass.call(peer, message)
        fdpass.close_all(descriptors)
        return answer

    def request(self, name: str, bundle: Path, socket_path: str) -> dict[str, Any]:
        return {
            "namespace": NAMESPACE,
            "id": name,
            "bundle": str(bundle),
            "address": str(self.state / "containerd.sock"),
            "ttrpc_address": self.events.path,
            "keeper": str(self.state / "keeper.sock"),
            "socket": socket_path,
        }

    def bundle(self, name: str, args: list[str], *, terminal: bool = False, root: str = "", **linux: Any) -> Path:
        path = self.state / "b" / name
        path.mkdir(parents=True)
        spec = json.loads(json.dumps(self._spec))
        spec["process"].update(args=args, terminal=terminal)
        spec["root"] = {"path": root or str(self.rootfs), "readonly": True}
        spec["linux"]["cgroupsPath"] = f"/gantry-test-{os.getpid()}/{name}"
        spec["linux"].update(linux)
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def shim(self, name: str, args: list[str], *, terminal: bool = False, root: str = "", **linux: Any) -> Shim:
        bundle = self.bundle(name, args, terminal=terminal, root=root, **linux)
        socket_path = str(self.state / "s" / name)
        pid = self.zygote({"op": "start", **self.request(name, bundle, socket_path)})["pid"]
        shim = Shim(self, name, bundle, pid, socket_path)
        self.shims.append(shim)
        return shim

    def stop(self) -> None:
        """End everything, whatever state the test left it in."""
        for shim in self.shims:
            init = shim.bundle / "init.pid"
            if init.exists() and not (shim.bundle / "exits" / "init").exists():
                _kill(int(init.read_text()))
            _kill(shim.pid)
        for name in ("keeper", "zygote"):
            with fdpass.connect(str(self.state / f"{name}.sock")) as peer:
                pid = fdpass.call(peer, {"op": "ping"})[0]["pid"]
                fdpass.call(peer, {"op": "shutdown"})
            if name == "keeper":
                wait_until(lambda gone=pid: not Path(f"/proc/{gone}").exists() or _is_zombie(gone))
        assert self._helper is not None
        for process in [self._helper, *self._extra]:
            process.wait(10)
        self.events.stop()
        for directory in Path("/sys/fs/cgroup").glob(f"*/gantry-test-{os.getpid()}"):
            with contextlib.suppress(OSError):
                directory.rmdir()  # the parent of all containers' cgroups


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busybox file system. Skips nothing: the package is in the test suite's list."""
    path = tmp_path_factory.mktemp("rootfs")
    (path / "bin").mkdir()
    shutil.copy(BUSYBOX, path / "bin" / "busybox")
    for applet in (
        "sh",
        "cat",
        "echo",
        "true",
        "sleep",
        "stty",
        "seq",
        "kill",
        "head",
        "dd",
        "wc",
        "printf",
        "id",
        "tr",
    ):
        (path / "bin" / applet).symlink_to("busybox")
    for directory in ("proc", "sys", "dev", "tmp"):
        (path / directory).mkdir()
    return path


@pytest.fixture(scope="session")
def oci_spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """runc-py's own default spec, without a read-write rootfs and without cgroup limits."""
    directory = tmp_path_factory.mktemp("spec")
    subprocess.run([sys.executable, "-m", "runc_py.main", "spec", "--bundle", str(directory)], cwd=ROOT, check=True)
    spec: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return spec


@pytest.fixture
def host(tmp_path: Path, rootfs: Path, oci_spec: dict[str, Any]) -> Iterator[Host]:
    state = Path(f"/tmp/gantry-shim-test-{os.getpid()}-{time.monotonic_ns() % 10**9}")
    state.mkdir()
    (state / "s").mkdir()
    made = Host(state, rootfs, oci_spec)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(state)
