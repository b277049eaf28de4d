"""``docker run`` with the real client: output, exit statuses, streams, terminals."""

from __future__ import annotations

import subprocess
import sys

import pexpect
import pytest

from tests.support.engine import DOCKER, Engine, now
from tests.support.host import wait_for


def test_prints_and_removes(engine: Engine) -> None:
    assert engine.docker("run", "--rm", "busybox", "echo", "hi").stdout == "hi\n"
    assert engine.docker("ps", "-aq").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("busybox", "true"), 0, ""),
        (("busybox", "sh", "-c", "exit 7"), 7, ""),
        (("busybox", "/no/such/program"), 127, "no such file or directory"),
        (("busybox", "nosuchprogram"), 127, "executable file not found"),
        (("busybox", "/etc/passwd"), 126, "permission denied"),
        (("busybox", "/etc"), 126, ""),
        (("--no-such-flag", "busybox"), 125, "unknown flag"),
        (("--network", "nosuchnet", "busybox", "true"), 125, "network nosuchnet not found"),
        # Process 1 is immune to signals from inside its own pid namespace (pid_namespaces(7)): a child dies of them.
        (("busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137, ""),
        (("busybox", "sh", "-c", "sh -c 'kill -TERM $$'; exit $?"), 143, ""),
    ],
)
def test_exit_status(engine: Engine, arguments: tuple[str, ...], status: int, message: str) -> None:
    done = engine.docker("run", "--rm", *arguments, check=False)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert engine.docker("ps", "-aq").stdout == ""


def test_stdin_reaches_the_container(engine: Engine) -> None:
    assert engine.docker("run", "-i", "--rm", "busybox", "cat", stdin=b"x\n").stdout == "x\n"


def test_streams_stay_apart(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_large_output_is_whole(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "seq", "1", "200000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))


def test_large_stdin_is_whole(engine: Engine) -> None:
    data = b"0123456789abcdef" * 65536 * 4
    done = engine.docker("run", "-i", "--rm", "busybox", "md5sum", stdin=data)
    expected = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout.decode()
    assert done.stdout == expected


def test_terminal_has_the_size_of_ours_and_follows_it(engine: Engine) -> None:
    command = engine.host.command(DOCKER, "-H", engine.url, "run", "-it", "--rm", "busybox", "sh")
    child = pexpect.spawn(command[0], command[1:], dimensions=(31, 97), timeout=20, env=engine.host.environment())
    child.expect("# ")
    child.sendline("tty; stty size")
    child.expect("/dev/(console|pts/0)\r\n31 97\r\n")
    child.setwinsize(40, 120)
    for _ in range(20):
        child.sendline("stty size")
        if child.expect(["40 120\r\n", "31 97\r\n"]) == 0:
            break
    else:
        pytest.fail("the terminal kept its old size")
    child.sendline("exit 3")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 3


def test_environment_user_workdir_hostname(engine: Engine) -> None:
    flags = ("-e", "A=b", "-u", "daemon", "-w", "/made/here", "-h", "box")
    done = engine.docker("run", "--rm", *flags, "busybox", "sh", "-c", "echo $A $(id -u):$(id -g) $(pwd) $(hostname)")
    assert done.stdout == "b 1:1 /made/here box\n"


def test_bind_mount(engine: Engine) -> None:
    source = engine.host.base / "bound"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("from the host\n")
    mount = f"{source}:/data:ro"
    assert engine.docker("run", "--rm", "-v", mount, "busybox", "cat", "/data/file").stdout == "from the host\n"
    refused = engine.docker("run", "--rm", "-v", mount, "busybox", "touch", "/data/new", check=False)
    assert refused.returncode == 1
    assert "Read-only file system" in refused.stderr


def test_limits_reach_the_cgroup(engine: Engine) -> None:
    script = (
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null"
        " || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"
    )
    done = engine.docker("run", "--rm", "-m", "64m", "--pids-limit", "50", "busybox", "sh", "-c", script)
    assert done.stdout == f"{64 << 20}\n50\n"


def test_sdk_runs_a_container(engine: Engine) -> None:
    script = (
        "import docker, sys; c = docker.DockerClient(base_url=sys.argv[1]);"
        "print(c.containers.run('busybox', 'echo from the sdk', remove=True).decode(), end='')"
    )
    assert engine.host.check(sys.executable, "-c", script, engine.url) == "from the sdk\n"


def test_events_tell_the_life_of_a_container(engine: Engine) -> None:
    engine.docker("run", "--name", "told", "busybox", "true")
    engine.docker("rm", "told")
    # What "rm" was answered for has been told: nothing of it may come later than now.
    lines = engine.docker(
        "events", "--since", "1", "--until", now(), "--filter", "container=told", "--format", "{{.Action}}"
    ).stdout.split()
    assert lines == ["create", "attach", "start", "die", "destroy"]


def test_detached_with_published_port_serves_http(engine: Engine) -> None:
    engine.docker(
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8080:80",
        "busybox",
        "sh",
        "-c",
        "echo listening; exec httpd -f -v -p 80 -h /www",
    )
    try:
        wait_for(lambda: "listening" in engine.docker("logs", "web").stdout, "the web server")
        wait_for(lambda: engine.host.run("curl", "-sf", "http://127.0.0.1:8080/").returncode == 0, "the port")
        assert engine.host.check("curl", "-sf", "http://127.0.0.1:8080/index.html") == "served\n"
        assert "0.0.0.0:8080->80/tcp" in engine.docker("ps").stdout
        done = engine.docker("run", "--rm", "-p", "8080:80", "busybox", "true", check=False)
        assert done.returncode == 125
        assert "port is already allocated" in done.stderr
    finally:
        engine.docker("rm", "-f", "web")
    assert engine.host.run("curl", "-sf", "http://127.0.0.1:8080/").returncode == 7
