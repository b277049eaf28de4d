"""``docker exec`` beyond the basics: large streams, half-close, exit codes, errors, Jenkins' hand-written request."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for


@pytest.fixture(scope="module")
def box(engine: Engine) -> Iterator[str]:
    ident = engine.docker("run", "-d", "--name", "execbox", "-e", "FROM=run", "busybox", "sleep", "1000")
    yield ident.stdout.strip()
    engine.docker("rm", "-f", "execbox")


def test_large_streams_are_whole(engine: Engine, box: str) -> None:
    out = engine.docker("exec", box, "sh", "-c", "seq 1 200000; seq 1 1000 >&2")
    assert out.stdout == "".join(f"{n}\n" for n in range(1, 200001))
    assert out.stderr == "".join(f"{n}\n" for n in range(1, 1001))
    data = b"0123456789abcdef" * 65536 * 4
    assert engine.docker("exec", "-i", box, "wc", "-c", stdin=data).stdout.strip() == str(len(data))


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("nosuch",), 127, "executable file not found"),
        (("/etc/passwd",), 126, "permission denied"),
        (("false",), 1, ""),
    ],
)
def test_exit_codes(engine: Engine, box: str, words: tuple[str, ...], status: int, text: str) -> None:
    done = engine.docker("exec", box, *words, check=False)
    assert (done.returncode, text in done.stdout + done.stderr) == (status, True), done


def test_environment_user_and_privilege(engine: Engine, box: str) -> None:
    script = "echo $FROM $OWN $(id -u) $PWD"
    done = engine.docker("exec", "-e", "OWN=x", "-u", "daemon", "-w", "/etc", box, "sh", "-c", script)
    assert done.stdout == "run x 1 /etc\n"
    caps = "grep CapEff /proc/self/status"
    plain = engine.docker("exec", box, "sh", "-c", caps).stdout
    assert engine.docker("exec", "--privileged", box, "sh", "-c", caps).stdout > plain


def test_inspect_and_detached(engine: Engine, box: str) -> None:
    waiting = ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done"]
    status, made = engine.api("POST", "/containers/execbox/exec", {"Cmd": waiting, "User": None})
    assert status == 201
    assert engine.api("POST", f"/exec/{made['Id']}/start", {"Detach": True})[0] == 200
    running = engine.api("GET", f"/exec/{made['Id']}/json")[1]
    assert (running["Running"], running["ExitCode"], running["ContainerID"]) == (True, None, box)
    assert running["ProcessConfig"]["entrypoint"] == "sh"
    assert made["Id"] in engine.api("GET", "/containers/execbox/json")[1]["ExecIDs"]
    engine.docker("exec", box, "touch", "/tmp/go")
    wait_for(lambda: engine.api("GET", f"/exec/{made['Id']}/json")[1]["ExitCode"] == 0, "the exec's end")
    assert engine.api("POST", f"/exec/{made['Id']}/start", {"Detach": True})[0] == 409
    assert engine.api("GET", "/exec/nosuch/json") == (404, {"message": "No such exec instance: nosuch"})


def test_refused_while_paused_or_stopped(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "pausing", "busybox", "sleep", "100")
    engine.docker("pause", "pausing")
    done = engine.docker("exec", "pausing", "true", check=False)
    assert "is paused, unpause the container before exec" in done.stderr
    engine.docker("unpause", "pausing")
    engine.docker("kill", "pausing")
    wait_for(lambda: "is not running" in engine.docker("exec", "pausing", "true", check=False).stderr, "the refusal")
    engine.docker("rm", "pausing")


def test_events(engine: Engine, box: str) -> None:
    engine.docker("exec", box, "sh", "-c", "exit 4", check=False)
    until = str(int(time.time()) + 1)
    lines = engine.docker(
        "events", "--since", "1", "--until", until, "--filter", f"container={box}", "--format", "{{json .}}"
    ).stdout.splitlines()
    events = [json.loads(line) for line in lines][-3:]
    assert [e["Action"] for e in events] == ["exec_create: sh -c exit 4", "exec_start: sh -c exit 4", "exec_die"]
    assert events[-1]["Actor"]["Attributes"]["exitCode"] == "4"


def test_background_child_does_not_hold_the_client(engine: Engine, box: str) -> None:
    done = engine.docker("exec", box, "sh", "-c", "sleep 60 & echo started", timeout=10)
    assert done.stdout == "started\n"


def test_jenkins_writes_its_request_by_hand(engine: Engine, box: str) -> None:
    """Bare line feeds, one newline too many, and the answer must begin with exactly ``HTTP/1.1 101 ``."""
    asked = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Cmd": ["cat"]}
    made = engine.api("POST", "/containers/execbox/exec", asked)[1]
    body = b'{"Detach":false,"Tty":false}'
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(f"/proc/{engine.host.pid}/root{engine.socket}")
        head = f"POST /v1.43/exec/{made['Id']}/start HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp\n"
        head += f"Content-Type: application/json\nContent-Length: {len(body)}\n\n"
        client.sendall(head.encode() + body + b"\n")
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 101 ")
        while stream.readline().strip():
            pass
        client.sendall(b"\x00\xffbinary")
        client.shutdown(socket.SHUT_WR)
        payload = b""
        while header := stream.read(8):
            assert header[:4] == b"\x01\0\0\0"
            payload += stream.read(int.from_bytes(header[4:], "big"))
    assert payload.lstrip(b"\n") == b"\x00\xffbinary"
