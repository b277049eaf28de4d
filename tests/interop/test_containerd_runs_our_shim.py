"""The distribution's own containerd runs containers with our shim, started cold by its command line.

With 1.6 as installed, and with trixie's 1.7 where ``tests/install-newer-peers`` unpacked it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.shim_messages import RUNTIME_INFO
from tests.integration.tasks.supervisor import comm
from tests.support.host import PrivateHost, parent, wait_for
from tests.support.images import busybox_rootfs
from tests.support.newer import MISSING, newer_program

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "/run/containerd/test.sock"
RUNTIME = "io.containerd.py.v2"
NEWER = newer_program("usr/bin/containerd")
COUNT = "i=0; while [ $i -lt {0} ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit {1}"


class Containerd:
    """A real containerd in a private host; ``ctr`` runs beside it."""

    def __init__(self, host: PrivateHost, program: str) -> None:
        """``program`` is the daemon, with its client beside it; "" means the installed one."""
        self.host = host
        self.rootfs = host.base / "rootfs"
        self.rootfs.mkdir()
        subprocess.run(["tar", "-x", "-C", str(self.rootfs)], input=busybox_rootfs(), check=True)
        self.log = host.base / "containerd.log"
        self._programs = host.base / "bin"
        self._programs.mkdir()
        shim = self._programs / "containerd-shim-py-v2"
        entry = "import sys; from shim.main import main; sys.exit(main())"
        shim.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -c '{entry}' \"$@\"\n")
        shim.chmod(0o755)
        path = os.path.dirname(program) or None
        self._containerd = shutil.which("containerd", path=path)
        self._ctr = shutil.which("ctr", path=path)
        assert self._containerd and self._ctr, "install containerd"
        self._config = host.base / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{host.base}/root"\nstate = "/run/containerd/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{ADDRESS}"\n'
        )
        host.check("mkdir", "-p", "/run/containerd")
        host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = f"{self._programs}:{os.environ['PATH']}"
        assert self._containerd is not None
        with self.log.open("ab") as sink:
            self._process = self.host.popen(
                "env", f"PATH={path}", self._containerd, "-c", str(self._config), stdout=sink, stderr=sink
            )
        wait_for(lambda: self.ctr("version", check=False).returncode == 0, "containerd")

    def kill(self) -> None:
        """SIGKILL, gone when this returns."""
        for pid in self.host.pids_of("containerd", str(self._config)):
            os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def ctr(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[str]:
        assert self._ctr is not None
        done = self.host.run(self._ctr, "--address", ADDRESS, *arguments, stdin=stdin, timeout=40)
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log.read_text()[-4000:]}"
        return done

    def run(
        self, name: str, *command: str, flags: tuple[str, ...] = ("--rm",), stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        where = ("--runtime", RUNTIME, "--env", "PATH=/bin", "--rootfs", str(self.rootfs), name)
        return self.ctr("run", *flags, *where, *command, stdin=stdin, check=False)

    def status(self, name: str) -> str:
        """What ``ctr task ls`` says of it; empty when there is no such task."""
        lines = (line.split() for line in self.ctr("task", "ls").stdout.splitlines())
        return next((words[2] for words in lines if words[0] == name), "")

    def shims(self) -> list[int]:
        """Outer pids of all shims, without the forks of theirs that have a call of the runtime to end."""
        named = [p for p in self.host.processes() if comm(p) == "gantry-shim"]
        found = []
        for pid in named:
            with contextlib.suppress(OSError):
                found += [pid] if parent(pid) not in named else []
        return found

    def remove(self, name: str) -> None:
        """Kill and remove a task with its container."""
        self.ctr("task", "kill", "--signal", "KILL", name, check=False)
        wait_for(lambda: self.status(name) in ("STOPPED", ""), "its end")
        self.ctr("task", "rm", name, check=False)
        self.ctr("container", "rm", name)


@pytest.fixture(
    scope="module",
    params=["", pytest.param(NEWER, marks=pytest.mark.skipif(NEWER is None, reason=MISSING))],
    ids=["installed", "1.7"],
)
def containerd(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    with PrivateHost() as host:
        daemon = Containerd(host, request.param)
        daemon.start()
        yield daemon
        daemon.kill()
        assert host.processes() == {}, "a shim or a container was left behind"


def test_run_exec_metrics_and_kill(containerd: Containerd) -> None:
    done = containerd.run("one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert containerd.run("two", "sleep", "60", flags=("--detach",)).returncode == 0
    done = containerd.ctr("task", "exec", "--exec-id", "e", "two", "/bin/sh", "-c", "echo in; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "in\n")
    assert containerd.status("two") == "RUNNING"
    assert "pids" in containerd.ctr("task", "metrics", "two").stdout
    containerd.ctr("task", "pause", "two")
    assert containerd.status("two") == "PAUSED"
    containerd.ctr("task", "resume", "two")
    assert len(containerd.ctr("task", "ps", "two").stdout.splitlines()) == 2
    containerd.remove("two")
    assert containerd.status("two") == ""


def test_standard_input_goes_in(containerd: Containerd) -> None:
    done = containerd.run("reads", "head", "-n", "2", stdin=b"first\nsecond\nthird\n")
    assert (done.returncode, done.stdout) == (0, "first\nsecond\n")


def test_a_terminal(containerd: Containerd) -> None:
    """``ctr run -t`` wants a terminal itself: util-linux's script gives it one."""
    inner = f"ctr --address {ADDRESS} run -t --rm --runtime {RUNTIME} --env PATH=/bin --rootfs {containerd.rootfs}"
    done = containerd.host.run("script", "-qec", f"{inner} tty sh -c 'tty; stty size; exit 5'", "/dev/null")
    assert done.returncode == 5, done.stdout
    assert "/dev/pts/0" in done.stdout.replace("/dev/console", "/dev/pts/0")


def test_a_missing_program_is_an_error_and_leaves_nothing(containerd: Containerd) -> None:
    done = containerd.run("none", "/bin/nonsense")
    assert done.returncode == 1
    assert "no such file or directory" in done.stderr
    containerd.ctr("container", "rm", "none", check=False)
    assert containerd.run("none", "true").returncode == 0


def test_containerd_killed_in_the_middle(containerd: Containerd) -> None:
    log = containerd.host.base / "through.log"
    flags = ("--detach", "--log-uri", f"file://{log}")
    assert containerd.run("through", "sh", "-c", COUNT.format(60, 3), flags=flags).returncode == 0
    assert containerd.run("stays", "sleep", "60", flags=("--detach",)).returncode == 0
    containerd.kill()
    seen = log.read_text().count("\n")
    wait_for(lambda: log.read_text().count("\n") > seen + 3, "the container to go on")
    containerd.start()
    assert containerd.status("through") == "RUNNING"
    done = containerd.ctr("task", "exec", "--exec-id", "e", "stays", "/bin/sh", "-c", "exit 9", check=False)
    assert done.returncode == 9
    wait_for(lambda: containerd.status("through") == "STOPPED", "its end")
    assert log.read_text() == "".join(f"{n}\n" for n in range(1, 61))
    assert "non-zero exit code 3" in containerd.ctr("task", "rm", "through").stderr
    containerd.ctr("container", "rm", "through")
    containerd.remove("stays")


def test_a_killed_shim_is_cleaned_up_by_its_delete_command(containerd: Containerd) -> None:
    assert containerd.run("lost", "sleep", "61", flags=("--detach",)).returncode == 0
    (shim,) = containerd.shims()
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: not containerd.host.pids_of("sleep 61"), "the container to be killed")
    wait_for(lambda: containerd.status("lost") in ("", "STOPPED"), "containerd to notice")
    containerd.remove("lost")
    assert containerd.run("lost", "true").returncode == 0


def test_containers_of_a_group_share_a_shim(containerd: Containerd) -> None:
    for name in ("pod", "member"):
        flags = ("--detach", "--annotation", "io.containerd.runc.v2.group=pod")
        assert containerd.run(name, "sleep", "60", flags=flags).returncode == 0
    assert len(containerd.shims()) == 1
    containerd.remove("pod")
    assert containerd.status("member") == "RUNNING"
    assert len(containerd.shims()) == 1
    containerd.remove("member")
    wait_for(lambda: not containerd.shims(), "the shim to end with its last container")


def test_a_logging_program(containerd: Containerd) -> None:
    program = containerd.host.base / "logger"
    program.write_text("#!/bin/sh\nexec 5>&-\nexec cat <&3 >$2\n")
    program.chmod(0o755)
    out = containerd.host.base / "logged"
    flags = ("--detach", "--log-uri", f"binary://{program}?to={out}")
    assert containerd.run("logged", "sh", "-c", "echo by binary", flags=flags).returncode == 0
    wait_for(lambda: out.exists() and out.read_text() == "by binary\n", "the program's file")
    wait_for(lambda: containerd.status("logged") == "STOPPED", "its end")
    containerd.remove("logged")


def test_events_come_in_order(containerd: Containerd, tmp_path: Path) -> None:
    events = tmp_path / "events"
    with events.open("wb") as sink:
        watcher = containerd.host.popen("ctr", "--address", ADDRESS, "events", stdout=sink)
        # A listener that runs may not have subscribed yet: something happens until it has seen it.
        wait_for(lambda: containerd.ctr("namespaces", "label", "default", "k=v") and events.read_text(), "an event")
        assert containerd.run("told", "true").returncode == 0
        wait_for(lambda: "/tasks/delete" in task_topics(events, "told"), "the last event")
        for pid in containerd.host.pids_of("ctr", "events"):
            os.kill(pid, signal.SIGTERM)
        watcher.wait(10)
    assert task_topics(events, "told") == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def task_topics(events: Path, name: str) -> list[str]:
    """Topics of the events about the task ``name`` that ``ctr events`` wrote, in order."""
    lines = (line for line in events.read_text().splitlines() if "/tasks/" in line and name in line)
    return [next(word for word in line.split() if word.startswith("/tasks/")) for line in lines]


def test_what_the_shim_says_of_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shim.main", "-info"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    info = RUNTIME_INFO.decode(done.stdout)
    assert info["name"] == RUNTIME
    features = json.loads(info["features"]["value"])
    assert "mount" in features["linux"]["namespaces"]
