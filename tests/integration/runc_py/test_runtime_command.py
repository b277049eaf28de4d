"""The command line, and the same bundles under the real runc: what the container sees must not differ."""

from __future__ import annotations

import array
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runc_py.conftest import REPOSITORY, Bundle

pytestmark = pytest.mark.root


def test_run_gives_output_and_exit_code(bundle: Bundle) -> None:
    bundle.shell("echo out; echo err >&2; exit 9")
    done = bundle.run()
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
    assert bundle.command("list", "-q").stdout == ""


def test_what_cannot_be_logged_as_asked_is_not_begun(bundle: Bundle) -> None:
    bundle.shell("touch /begun")
    for options, sentence in (
        (("--log-format", "xml"), 'unknown log format "xml": there are text and json'),
        (("--log", "/nonexistent/log"), "cannot open log /nonexistent/log: No such file or directory"),
    ):
        done = bundle.command(*options, "run", bundle.id)
        assert (done.returncode, done.stderr.strip()) == (1, sentence)
        assert not (bundle.rootfs / "begun").exists()


def test_create_start_exec_kill_delete(bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    silent: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    bundle.save()
    created = subprocess.run(
        [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "create", "--pid-file", "pid", bundle.id],
        cwd=bundle.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert created.returncode == 0
    pid = int((bundle.directory / "pid").read_text())
    state = json.loads(bundle.command("state", bundle.id).stdout)
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(bundle.directory))
    assert bundle.command("start", bundle.id).returncode == 0
    assert json.loads(bundle.command("ps", "-f", "json", bundle.id).stdout) == [pid]
    assert str(pid) in bundle.command("ps", bundle.id).stdout
    done = bundle.command(
        "exec", "--cwd", "/tmp", "-e", "X=5", "-u", "7:8", bundle.id, "sh", "-c", "pwd; echo $X; id -g; exit 4"
    )
    assert (done.returncode, done.stdout.split()) == (4, ["/tmp", "5", "8"])
    listed = bundle.command("list").stdout.splitlines()
    assert listed[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert listed[1].split()[:3] == [bundle.id, str(pid), "running"]
    assert bundle.command("pause", bundle.id).returncode == 0
    assert bundle.command("resume", bundle.id).returncode == 0
    assert bundle.command("update", "--pids-limit", "50", bundle.id).returncode == 0
    stats = json.loads(bundle.command("events", "--stats", bundle.id).stdout)
    assert (stats["type"], stats["data"]["pids"]["limit"]) == ("stats", 50)
    refused = bundle.command("delete", bundle.id)
    assert (refused.returncode, "that is not stopped: running" in refused.stderr) == (1, True)
    assert bundle.command("kill", bundle.id, "SIGKILL").returncode == 0
    deadline = time.monotonic() + 5
    while json.loads(bundle.command("state", bundle.id, **silent).stdout)["status"] != "stopped":
        assert time.monotonic() < deadline
    assert bundle.command("delete", bundle.id).returncode == 0


def test_errors_are_logged_where_containerd_looks(bundle: Bundle) -> None:
    bundle.process["args"] = ["missing"]
    bundle.save()
    done = bundle.command("--log", "log.json", "--log-format", "json", "create", bundle.id)
    assert done.returncode == 1
    record = json.loads((bundle.directory / "log.json").read_text().splitlines()[-1])
    assert record["level"] == "error"
    assert 'exec: "missing": executable file not found in $PATH' in record["msg"]
    assert 'exec: "missing": executable file not found in $PATH' in done.stderr
    for arguments in (["checkpoint", "x"], ["events", "x"], ["nonsense"], ["--nonsense"], ["state", "none"]):
        assert bundle.command(*arguments).returncode == 1, arguments


def test_spec_features_version(bundle: Bundle) -> None:
    made = bundle.directory / "new"
    made.mkdir()
    assert bundle.command("spec", "--bundle", "new").returncode == 0
    document = json.loads((made / "config.json").read_text())
    assert document["process"]["args"] == ["sh"]
    again = bundle.command("spec", "--bundle", "new")
    assert (again.returncode, "Remove it first" in again.stderr) == (1, True)
    assert "pid" in json.loads(bundle.command("features").stdout)["linux"]["namespaces"]
    assert bundle.command("--version").stdout.startswith("runc-py version ")


def test_console_socket_receives_the_terminal(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.shell("tty")
    with socket.socket(socket.AF_UNIX) as listener:
        path = f"/tmp/{bundle.id}.sock"
        listener.bind(path)
        listener.listen(1)
        try:
            assert bundle.command("create", "--console-socket", path, bundle.id).returncode == 0
            peer, _ = listener.accept()
            with peer:
                _, ancillary, _, _ = peer.recvmsg(100, socket.CMSG_SPACE(4))
            master = array.array("i", ancillary[0][2])[0]
        finally:
            os.unlink(path)
    assert bundle.command("start", bundle.id).returncode == 0
    assert os.read(master, 100) == b"/dev/pts/0\r\n"
    os.close(master)


def test_run_with_a_terminal_relays_it(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.shell("read -r line; echo got $line; test -t 1 && echo tty; exit 6")
    bundle.save()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(bundle.directory)
        os.environ["PYTHONPATH"] = str(REPOSITORY)
        os.execv(sys.executable, [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "run", bundle.id])
    os.write(terminal, b"words\n")
    output = b""
    try:
        while chunk := os.read(terminal, 1000):
            output += chunk
    except OSError:
        pass  # EIO: the other side has closed
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6
    assert b"got words" in output
    assert b"tty" in output


def test_signals_are_forwarded(bundle: Bundle) -> None:
    bundle.shell('trap "exit 44" TERM; echo ready; while true; do sleep 0.05; done')
    bundle.save()
    command = [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "run", bundle.id]
    process = subprocess.Popen(
        command, cwd=bundle.directory, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(20) == 44
    process.stdout.close()


REPORT = """
id; pwd; umask; hostname; env | sort; ulimit -n
grep -E '^(Cap|NoNewPrivs|Groups|Sig|Seccomp:)' /proc/self/status
mount | grep -v name=systemd | sed -e 's/ro,relatime,discard.*/ro)/' -e 's/rw,relatime,discard.*/rw)/' | sort
ls -ln /dev | awk '{print $1, $3, $4, $NF}'
ls /proc/self/fd | wc -l
test -s /proc/timer_list && echo timers
test -s /proc/keys && echo keys
ls /proc/acpi | wc -l
cat /proc/self/oom_score_adj
"""


def _plain(_bundle: Bundle) -> None:
    """The default spec."""


def _as_user(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [10, 20]}
    bundle.process["cwd"] = "/home"
    bundle.process["env"].append("HOME=/elsewhere")


def _privileged(bundle: Bundle) -> None:
    bundle.process["noNewPrivileges"] = False
    names = ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), names)
    bundle.linux["maskedPaths"] = []
    bundle.linux["readonlyPaths"] = []
    bundle.spec["root"]["readonly"] = False


def _limited(bundle: Bundle) -> None:
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    bundle.process["oomScoreAdj"] = 50
    bundle.linux["resources"].update({"pids": {"limit": 44}, "memory": {"limit": 128 << 20}})
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    bundle.linux["devices"] = [
        {"path": "/dev/own", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 3, "gid": 4}
    ]


def comparable(report: str) -> list[str]:
    """Lines of a report without the number of signals queued for root, which all of the host shares."""
    return [line for line in report.splitlines() if not line.startswith("SigQ:")]


@pytest.mark.parametrize("change", [_plain, _as_user, _privileged, _limited], ids=lambda change: change.__name__)
def test_containers_look_as_under_runc(bundle: Bundle, change: Any) -> None:
    real = shutil.which("runc")
    assert real, "runc is missing: apt-get install runc"
    bundle.spec["ociVersion"] = "1.0.2"
    bundle.spec["mounts"].append(
        {"destination": "/data", "type": "bind", "source": "/etc/hostname", "options": ["rbind", "ro"]}
    )
    bundle.rootfs.joinpath("data").touch()
    change(bundle)
    bundle.shell(REPORT)
    ours, theirs = bundle.run(), bundle.run(runtime=real)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.returncode == 0, ours.stderr
    # runc 1.1 leaves the tmpfs above the v1 hierarchies writable even where the spec says "ro"; later ones do not.
    expected = theirs.stdout.replace("/sys/fs/cgroup type tmpfs (rw,", "/sys/fs/cgroup type tmpfs (ro,")
    assert comparable(ours.stdout.replace(",size=4k,nr_inodes=1,mode=755", "")) == comparable(expected)
    shutil.rmtree(f"{bundle.state}-{real}", ignore_errors=True)


def test_the_interpreter_is_out_of_reach(bundle: Bundle) -> None:
    """CVE-2019-5736: the program is the runtime's own executable, by name and as a script's interpreter."""
    interpreter = Path("/proc/self/exe").resolve()
    before = interpreter.stat()
    (bundle.rootfs / "bin/bad").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "bin/bad").chmod(0o755)
    bundle.spec["root"]["readonly"] = False
    bundle.process["noNewPrivileges"] = False
    bundle.process["capabilities"] = {kind: ["CAP_DAC_OVERRIDE"] for kind in ("bounding", "effective", "permitted")}
    script = "for fd in /proc/[0-9]*/exe; do (echo owned > $fd) 2>&1; done; exit 0"
    bundle.sleeping()
    for program in ("/proc/self/exe", "/bin/bad"):
        bundle.command("exec", bundle.id, program, "-c", "import time; time.sleep(1)")
    done = bundle.command("exec", bundle.id, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    after = interpreter.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    bundle.shell("sleep 5")


def test_what_execs_through_proc_cannot_be_written(bundle: Bundle) -> None:
    """A container process that runs our interpreter (through /proc/self/exe) may not open it for writing."""
    bundle.process["args"] = ["/proc/self/exe", "-I", "-S", "-c", "import os; os.open('/proc/self/exe', os.O_WRONLY)"]
    bundle.spec["root"]["readonly"] = False
    done = bundle.run()
    assert done.returncode != 0
    mentioned = [
        text
        for text in ("Read-only file system", "Text file busy", "not found", "No such", "no such")
        if text in done.stderr
    ]
    assert mentioned, done.stderr


def test_listening_sockets_are_passed_on(bundle: Bundle) -> None:
    bundle.shell("echo $LISTEN_PID $LISTEN_FDS; readlink /proc/self/fd/3 | cut -c1-6")
    bundle.save()
    as_three = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
    command = [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "run", bundle.id]
    with socket.socket() as listener:
        done = subprocess.run(
            [sys.executable, "-c", as_three, str(listener.fileno()), *command],
            cwd=bundle.directory,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.split() == ["1", "1", "socket"], done.stderr


@pytest.mark.parametrize("runtime", ["", "runc"], ids=["ours", "runc"])
def test_no_new_privileges_in_exec(bundle: Bundle, runtime: str) -> None:
    """The container's setting, the flag's with a value, and a file that leaves it out: as Go writes ``false``."""
    if runtime and shutil.which(runtime) is None:
        pytest.skip(f"needs {runtime}")
    bundle.process["args"] = ["sleep", "1000"]
    bundle.process["noNewPrivileges"] = True
    look = ["grep", "NoNewPrivs", "/proc/self/status"]
    process = {"args": look, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    (bundle.directory / "process.json").write_text(json.dumps(process))
    # Not ``command``: its pipes would be the container's, and end with it.
    bundle.save()
    program = [runtime] if runtime else [sys.executable, "-m", "runc_py.main"]
    root = f"{bundle.state}-{runtime}" if runtime else str(bundle.state)
    started = subprocess.run(
        [*program, "--root", root, "run", "--detach=true", bundle.id],
        cwd=bundle.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert started.returncode == 0
    found = [
        bundle.command("exec", *arguments, runtime=runtime).stdout.split()[-1]
        for arguments in (
            (bundle.id, *look),
            ("--no-new-privs=false", bundle.id, *look),
            ("--no-new-privs=true", bundle.id, *look),
            ("--process", "process.json", bundle.id),
        )
    ]
    bundle.command("delete", "--force", bundle.id, runtime=runtime)
    assert found == ["1", "0", "1", "0"]
