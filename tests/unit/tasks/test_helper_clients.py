"""Clients of zygote and keeper against a SEQPACKET server, and the answers of foreign shims."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from containerd_py.tasks import foreign, helpers
from containerd_py.tasks.bundle import Bundle, Endpoint
from containerd_py.tasks.launcher import HelperClient, HelperLost, Zygote
from oci import errors
from protos.containerd import bootstrap_pb2


class Helper:
    """A helper process played by a thread; ``answer`` None makes it die at once."""

    def __init__(self, path: str, answer: Callable[[dict[str, object]], dict[str, object] | None]) -> None:
        if os.path.exists(path):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen()
        self.answer = answer
        self.requests: list[dict[str, object]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            while data := peer.recv(65536):
                request = json.loads(data)
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    self.listener.close()
                    break
                peer.send(json.dumps(answer).encode())
            peer.close()


def no_restart() -> int:
    raise AssertionError("restarted")


def test_requests_in_flight_get_their_own_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "z.sock")
    Helper(path, lambda request: {"n": request["n"]})

    async def body() -> None:
        client = HelperClient("zygote", path, no_restart)
        answers = await asyncio.gather(*(client.request({"n": n}) for n in range(50)))
        assert [answer["n"] for answer in answers] == list(range(50))
        client.close()

    asyncio.run(body())


def test_error_is_passed_on_in_the_helpers_words(tmp_path: Path) -> None:
    path = str(tmp_path / "z.sock")
    Helper(path, lambda request: {"error": "fork: Cannot allocate memory"})

    async def body() -> None:
        with pytest.raises(errors.Internal, match="Cannot allocate memory"):
            await HelperClient("zygote", path, no_restart).request({"op": "ping"})

    asyncio.run(body())


def test_dead_zygote_is_started_again_and_asked_again(tmp_path: Path) -> None:
    path = str(tmp_path / "z.sock")
    Helper(path, lambda request: None)
    restarted: list[Helper] = []

    def restart() -> int:
        restarted.append(Helper(path, lambda request: {"pid": 7, "address": f"unix://{request['socket']}"}))
        return os.getpid()

    async def body() -> None:
        client = HelperClient("zygote", path, restart)
        keeper = HelperClient("keeper", str(tmp_path / "k.sock"), no_restart)
        zygote = Zygote(client, keeper, address="/a", ttrpc="/a.ttrpc", debug=False)
        launched = await zygote.start("moby", "c1", "/bundle", "/s/1")
        assert launched == ("unix:///s/1", 2, 7)
        client.close()

    asyncio.run(body())
    request = restarted[0].requests[0]
    assert request["op"] == "start"
    assert request["keeper"] == str(tmp_path / "k.sock")
    assert {"namespace", "id", "bundle", "address", "ttrpc_address", "socket", "debug"} <= set(request)


def test_helper_that_never_listens_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("containerd_py.tasks.launcher.READY_SECONDS", 0.05)

    async def body() -> None:
        with pytest.raises(HelperLost, match="does not answer"):
            await HelperClient("zygote", str(tmp_path / "none.sock"), os.getpid).connect()

    asyncio.run(body())


def test_a_helper_that_dies_at_once_is_started_again(tmp_path: Path) -> None:
    path = str(tmp_path / "z.sock")
    helpers_: list[Helper] = []
    started: list[int] = []

    def restart() -> int:
        started.append(1)
        if len(started) < 3:
            return 2**22 + 1  # the pid of nobody: it has ended already
        helpers_.append(Helper(path, lambda request: {"pid": 7}))
        return os.getpid()

    async def body() -> None:
        client = HelperClient("zygote", path, restart)
        assert await client.request({"op": "ping"}) == {"pid": 7}
        client.close()

    asyncio.run(body())
    assert len(started) == 3


def test_blocking_ask(tmp_path: Path) -> None:
    path = str(tmp_path / "z.sock")
    assert helpers.ask(path, {"op": "ping"}, 1.0) is None
    Helper(path, lambda request: {"pid": os.getpid(), "version": "0"})
    assert helpers.ask(path, {"op": "ping"}, 1.0) == {"pid": os.getpid(), "version": "0"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"unix:///run/s/1\n", Endpoint(2, "unix:///run/s/1")),
        (b'{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}', Endpoint(3, "unix:///run/s/1")),
        (
            bootstrap_pb2.BootstrapResult(version=3, address="unix:///run/s/1", protocol="ttrpc").SerializeToString(),
            Endpoint(3, "unix:///run/s/1"),
        ),
    ],
)
def test_three_forms_of_a_shims_answer(answer: bytes, expected: Endpoint) -> None:
    assert foreign.parse_endpoint(answer) == expected


def test_unusable_answers_of_a_shim() -> None:
    with pytest.raises(errors.Internal):
        foreign.parse_endpoint(b"")
    with pytest.raises(errors.Internal):
        foreign.parse_endpoint(b"panic: runtime error")
    with pytest.raises(errors.Unimplemented):
        foreign.parse_endpoint(b'{"version":3,"address":"unix:///x","protocol":"grpc"}')


def test_runtime_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "containerd-shim-odd-v7"
    shim.write_text("#!/bin/sh\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert foreign.resolve("io.containerd.odd.v7") == (str(shim),)
    assert foreign.resolve(str(shim)) == (str(shim),)
    assert foreign.resolve("") == foreign.OWN_PROGRAM
    with pytest.raises(errors.NotFound, match="containerd-shim-none-v2 is not on PATH"):
        foreign.resolve("io.containerd.none.v2")
    for name in ("runc", "a/b.c", "io..v2"):
        with pytest.raises(errors.InvalidArgument):
            foreign.resolve(name)


@pytest.mark.parametrize("wants", ["any", "bootstrap"])
def test_start_tries_both_forms_of_input(tmp_path: Path, wants: str) -> None:
    """A shim that accepts only one form of standard input is started all the same."""
    shim = tmp_path / "shim"
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\x32\x04crun")
    bundle = Bundle(str(tmp_path), "moby", "c1")
    first = b"containerd.runc.v1.Options" if wants == "any" else b"c1"
    shim.write_text(
        "#!/usr/bin/env python3\nimport sys\n"
        f"data = sys.stdin.buffer.read()\nif data[2:{2 + len(first)}] != {first!r}: sys.exit('wrong form')\n"
        "print('unix:///run/s/9')\n"
    )
    shim.chmod(0o755)
    daemon = foreign.Daemon("/a", "/a.ttrpc", "containerd-py", False)
    endpoint = asyncio.run(foreign.start((str(shim),), bundle, options, daemon))
    assert endpoint == Endpoint(2, "unix:///run/s/9")
    assert bundle.endpoint() == endpoint


def test_failed_start_says_what_the_shim_said(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    shim.write_text("#!/bin/sh\necho 'no such runtime: crun' >&2\nexit 1\n")
    shim.chmod(0o755)
    daemon = foreign.Daemon("/a", "/a.ttrpc", "containerd-py", False)
    with pytest.raises(errors.Internal, match="no such runtime: crun"):
        asyncio.run(foreign.start((str(shim),), Bundle(str(tmp_path), "moby", "c1"), None, daemon))
