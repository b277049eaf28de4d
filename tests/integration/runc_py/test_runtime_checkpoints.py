"""Checkpoint and restore by the runtime's command and the real criu, where one works with this kernel."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runc_py.conftest import REPOSITORY, Bundle
from tests.support.host import wait_for
from tests.support.newer import MISSING, working_criu

CRIU = working_criu()
pytestmark = pytest.mark.skipif(CRIU is None, reason=f"no criu works with this kernel; newer one {MISSING}")
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


def run(bundle: Bundle, *arguments: str, output: int = subprocess.DEVNULL, stdin: int = subprocess.DEVNULL) -> None:
    """The runtime's command, with streams of our choice; it must succeed."""
    assert CRIU is not None
    bundle.save()
    program = [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "--criu", CRIU]
    log = bundle.directory / "command.log"
    done = subprocess.run(
        [*program, "--log", str(log), *arguments],
        cwd=bundle.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=stdin,
        stdout=output,
        stderr=output,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, log.read_text()


def images(bundle: Bundle) -> tuple[str, ...]:
    return ("--image-path", str(bundle.directory / "images"), "--work-path", str(bundle.directory / "work"))


def last(path: Path) -> int:
    lines = path.read_text().split()
    return int(lines[-1]) if lines else 0


def test_a_log_file_and_the_null_device_of_the_host(bundle: Bundle) -> None:
    """Files that are outside of the container, as a service manager hands them over; and no cgroup namespace."""
    bundle.shell(COUNT)
    bundle.linux["namespaces"] = [entry for entry in bundle.linux["namespaces"] if entry["type"] != "cgroup"]
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_ERRNO"}],
    }
    log = bundle.directory / "out"
    with log.open("ab") as sink:
        run(bundle, "run", "--detach", bundle.id, output=sink.fileno())
        wait_for(lambda: last(log) > 3, "the first lines")
        run(bundle, "checkpoint", *images(bundle), bundle.id)
    assert bundle.runtime.list() == []
    before = last(log)
    with log.open("ab") as sink:
        # As containerd writes it, with one dash.
        run(bundle, "restore", "--detach", *images(bundle), "-no-subreaper", bundle.id, output=sink.fileno())
    wait_for(lambda: last(log) > before + 3, "it goes on")
    numbers = [int(line) for line in log.read_text().split()]
    assert numbers == list(range(1, len(numbers) + 1)), "where it stopped"
    assert bundle.runtime.state(bundle.id)["status"] == "running"
    done = bundle.command("exec", bundle.id, "grep", "Seccomp:", "/proc/1/status", "/proc/self/status")
    assert done.stdout.split()[1::2] == ["2", "2"], done.stderr
    assert "memory" in bundle.command("exec", bundle.id, "ls", "/sys/fs/cgroup").stdout
    run(bundle, "delete", "--force", bundle.id)


def test_a_pipe_and_a_paused_container_that_goes_on(bundle: Bundle) -> None:
    bundle.shell(COUNT)
    log = bundle.directory / "out"
    with log.open("wb") as sink, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sink) as reader:
        assert reader.stdin is not None
        with reader.stdin as pipe:
            run(bundle, "run", "--detach", bundle.id, output=pipe.fileno())
            wait_for(lambda: last(log) > 3, "the first lines")
            run(bundle, "pause", bundle.id)
            run(bundle, "checkpoint", "--leave-running", *images(bundle), bundle.id)
            assert bundle.runtime.state(bundle.id)["status"] == "paused"
            run(bundle, "resume", bundle.id)
            before = last(log)
            wait_for(lambda: last(log) > before + 3, "it was left running")
            run(bundle, "delete", "--force", bundle.id)
            run(bundle, "restore", "--detach", *images(bundle), bundle.id, output=pipe.fileno())
            after = last(log)
            wait_for(lambda: last(log) != after, "the restored one counts")
            run(bundle, "delete", "--force", bundle.id)


@contextlib.contextmanager
def console(bundle: Bundle, *command: str) -> Iterator[int]:
    """Run a command that hands over a terminal; its master."""
    path = str(bundle.state.parent / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(30)
        run(bundle, *command, "--console-socket", path, bundle.id)
        peer, _ = listener.accept()
        with peer:
            _, (master,), _, _ = socket.recv_fds(peer, 64, 1)
    os.unlink(path)
    try:
        yield master
    finally:
        os.close(master)


def said(master: int, text: str, answer: str) -> None:
    """Type a line; ``answer`` comes."""
    os.write(master, f"{text}\n".encode())
    seen = b""

    def come() -> bool:
        nonlocal seen
        if select.select([master], [], [], 0)[0]:
            seen += os.read(master, 4096)
        return answer.encode() in seen

    wait_for(come, answer)


def test_a_program_that_has_closed_its_streams(bundle: Bundle) -> None:
    bundle.shell("exec >&- 2>&-; " + COUNT.replace("echo $i", "echo $i >> /tmp/numbers"))
    numbers = bundle.rootfs / "tmp/numbers"
    bundle.spec["root"]["readonly"] = False
    run(bundle, "run", "--detach", bundle.id)
    wait_for(lambda: numbers.exists() and last(numbers) > 3, "the first lines")
    run(bundle, "checkpoint", *images(bundle), bundle.id)
    before = last(numbers)
    run(bundle, "restore", "--detach", *images(bundle), bundle.id)
    wait_for(lambda: last(numbers) > before + 3, "it goes on")
    run(bundle, "delete", "--force", bundle.id)


def test_a_terminal(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.shell("i=0; while read word; do i=$((i+1)); echo $i:$word:$(tty); done")
    with console(bundle, "run", "--detach") as master:
        said(master, "one", "1:one:/dev/pts/0")
        run(bundle, "checkpoint", *images(bundle), bundle.id)
    with console(bundle, "restore", "--detach", *images(bundle)) as master:
        said(master, "two", "2:two:/dev/pts/0")
        run(bundle, "exec", bundle.id, "sh", "-c", "echo from exec >/dev/console")
        said(master, "three", "3:three:/dev/pts/0")
        run(bundle, "delete", "--force", bundle.id)
