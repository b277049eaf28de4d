"""containerd-py is killed between and during API calls: clients see a slow answer, not a failed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import wait_for
from tests.support.registry import running_registry

SUPERVISOR = "containerd_py.main"


@pytest.fixture(scope="module")
def bereft(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def sleeper(bereft: Engine) -> Iterator[str]:
    yield bereft.docker("run", "-d", "--name", "sleeper", "busybox", "sleep", "1000").stdout.strip()
    bereft.docker("rm", "-f", "sleeper", check=False)


CALLS = (
    ("run", "--rm", "busybox", "echo", "said"),
    ("create", "--name", "made", "busybox", "true"),
    ("rm", "made"),
    ("exec", "sleeper", "echo", "said"),
    ("exec", "-d", "sleeper", "true"),
    ("top", "sleeper"),
    ("stats", "--no-stream", "sleeper"),
    ("pause", "sleeper"),
    ("unpause", "sleeper"),
    ("update", "--memory", "64m", "--memory-swap", "64m", "sleeper"),
    ("cp", "sleeper:/etc/passwd", "-"),
    ("diff", "sleeper"),
    ("commit", "sleeper", "committed"),
    ("tag", "committed", "tagged"),
    ("history", "tagged"),
    ("save", "tagged"),
    ("rmi", "tagged", "committed"),
    ("images", "-a"),
    ("ps", "--size"),
    ("system", "df"),
    ("version",),
    ("restart", "-t", "0", "sleeper"),
    ("stop", "-t", "0", "sleeper"),
    ("start", "sleeper"),
    ("kill", "sleeper"),
)


def test_each_command_survives_a_supervisor_that_just_died(bereft: Engine, sleeper: str) -> None:
    for call in CALLS:
        wait_for(lambda: bereft.host.pids_of(SUPERVISOR), "the next supervisor")  # not every call has need of one
        bereft.kill(SUPERVISOR)
        bereft.docker(*call)
    assert "exited" in bereft.docker("ps", "-a", "--filter", "name=sleeper", "--format", "{{.State}}").stdout
    assert bereft.docker("ps", "-aq", "--filter", "name=made").stdout == ""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("run", "--rm", "busybox", "sh", "-c", "echo ran; exit 3"), "ran\n"),
        (("exec", "sleeper", "sh", "-c", "echo ran >>/tmp/count; wc -l </tmp/count; exit 3"), "1\n"),
        (("rm", "-f", "sleeper"), "sleeper\n"),
        (("kill", "sleeper"), "sleeper\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_call_that_a_supervisor_takes_with_it(bereft: Engine, sleeper: str, call: tuple[str, ...], said: str) -> None:
    """The supervisor hears nothing any more when the request comes, and is killed with it: the next one gets it."""
    pid = bereft.pid(SUPERVISOR)
    os.kill(pid, signal.SIGSTOP)
    asking = bereft.popen(*call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: unread(bereft), f"{call[0]} to be asked of the supervisor")
    finally:
        os.kill(pid, signal.SIGKILL)
    out, error = asking.communicate(timeout=60)
    assert (out.decode(), asking.returncode) == (said, 3 if "exit 3" in call[-1] else 0), error.decode()


PROXY = """
import os, socket, sys, threading, time
paused, go = sys.argv[1:]

def pump(source, target, slow):
    total = 0
    while data := source.recv(65536):
        total += len(data)
        if slow and total > 1 << 20 and not os.path.exists(go):
            open(paused, "w").close()
            while not os.path.exists(go):
                time.sleep(0.02)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

listener = socket.create_server(("127.0.0.1", 5050))
while True:
    client, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", 5000))
    for pair in ((client, server, False), (server, client, True)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
"""A registry that stops in the middle of a large answer until it may go on."""


def test_a_pull_goes_on_with_the_next_supervisor(bereft: Engine) -> None:
    host, paused, go = bereft.host, bereft.host.base / "paused", bereft.host.base / "go"
    dockerfile = b"FROM busybox\nRUN head -c 8000000 /dev/urandom >/blob\n"
    with running_registry(host.base / "registry", host=host) as address:
        bereft.docker("build", "-t", f"{address}/large", "-", stdin=dockerfile)
        bereft.docker("push", "--quiet", f"{address}/large")
        expected = bereft.docker("run", "--rm", f"{address}/large", "sha256sum", "/blob").stdout
        bereft.docker("rmi", f"{address}/large")
        bereft.docker("builder", "prune", "-af")
        proxy = host.popen(sys.executable, "-c", PROXY, str(paused), str(go), stdin=subprocess.DEVNULL)
        try:
            wait_for(lambda: ":5050 " in host.check("ss", "-ltnH"), "the proxy")
            pulling = bereft.popen("pull", "127.0.0.1:5050/large", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            wait_for(paused.exists, "the pull to be under way", 60)
            bereft.kill(SUPERVISOR)
            go.touch()
            out, _ = pulling.communicate(timeout=90)
        finally:
            for pid in host.pids_of(str(paused)):
                os.kill(pid, signal.SIGKILL)
            proxy.wait(20)
        assert pulling.returncode == 0, out.decode()
        assert bereft.docker("run", "--rm", "127.0.0.1:5050/large", "sha256sum", "/blob").stdout == expected
    bereft.docker("rmi", "127.0.0.1:5050/large")


def unread(engine: Engine) -> bool:
    """Whether a request waits in the supervisor's socket that nobody reads."""
    listed = engine.host.check("ss", "-xnH", "src", "*containerd.sock.ttrpc").splitlines()
    return any(line.split()[1] == "ESTAB" and int(line.split()[2]) > 0 for line in listed)


def test_a_supervisor_that_stays_away_is_named(make_engine: Callable[..., Engine]) -> None:
    """Given by ``--containerd`` it is nobody's to start again: calls say within their bound what is missing."""
    engine = make_engine()
    address = f"{engine.host.exec_root}/containerd/containerd.sock"
    engine.kill("engine.main")
    flags, engine.flags = engine.flags, ("--containerd", address)
    engine.start()
    engine.docker("create", "--name", "made", "busybox", "true")
    engine.kill(SUPERVISOR)
    for method, path in (("POST", "/containers/made/start"), ("DELETE", "/containers/made")):
        status, told = engine.api(method, path)
        assert status == 503
        assert f"containerd at {address} cannot be reached" in told["message"]
        assert "after 20 s of waiting" in told["message"]
    engine.kill("engine.main")
    engine.flags = flags
    engine.start()
    assert engine.docker("ps", "-aq").stdout == ""  # a removal that was begun is finished
