"""A private "host" for the engine: its own network, mount and pid namespaces on this machine's kernel.

Rule: whatever a test starts lives and dies in here, and ``leftovers`` tells what an engine that was shut down left
behind: processes, mounts, network links, nftables objects, files, cgroups.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[2]
CGROUPS = Path("/sys/fs/cgroup")
DEFAULT_TIMEOUT = 60.0
REAPED_SECONDS = 5.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = 40.0) -> None:
    """Poll until ``condition`` holds; ``AssertionError`` naming ``what`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds:g} s waiting for {what}"
        time.sleep(0.02)


def cgroup_directories(*parents: str) -> set[str]:
    """Cgroups below ``parents`` in every hierarchy of this machine."""
    found: set[str] = set()
    for parent in parents:
        for root in (CGROUPS, *(p for p in CGROUPS.iterdir() if p.is_dir())):
            base = f"{root}{parent}"
            # Other hosts' containers come and go meanwhile: what vanishes during the walk is passed over.
            found.update(os.path.join(at, name) for at, names, _ in os.walk(base) for name in names)
    return found


class PrivateHost:
    """Namespaces and directories of one pretended machine; a context manager."""

    def __init__(self, *, disk_size: str = "", variables: Mapping[str, str] | None = None) -> None:
        """``disk_size`` (``16m``) makes the data root a tmpfs of that size: a disk that fills up.

        ``variables`` are added to the environment of all programs inside.
        """
        self._variables = dict(variables or {})
        self.base = Path(tempfile.mkdtemp(prefix="gantry-host-"))
        self.data_root = self.base / "lib"
        self.exec_root = self.base / "run"
        self.data_root.mkdir()
        self.exec_root.mkdir()
        self._disk_size = disk_size
        self._init: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self._mounts_before: list[str] = []
        self.cgroup_parent = f"/{self.base.name}"
        """Where engines in this host make their cgroups, which are the machine's."""

    def __enter__(self) -> PrivateHost:
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["--propagation", "private", sys.executable, str(Path(__file__).with_name("init.py"))]
        self._init = subprocess.Popen([*command, "/run/lock"], stdout=subprocess.PIPE)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"ready\n", "the private host did not come up"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        self.pid = int(children.split()[0])
        if self._disk_size:
            options = f"size={self._disk_size},mode=755"
            self.check("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.data_root))
        self._mounts_before = self.mounts()
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._init is not None
        self._init.kill()
        self._init.wait()
        assert self._init.stdout is not None
        self._init.stdout.close()
        shutil.rmtree(self.base, ignore_errors=True)
        for path in sorted(self._cgroups(), reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        for root in (CGROUPS, *(p for p in CGROUPS.iterdir() if p.is_dir())):
            with contextlib.suppress(OSError):
                os.rmdir(f"{root}{self.cgroup_parent}")

    def _cgroups(self) -> set[str]:
        """Those of our engines, and others that carry this host's name."""
        return {path for path in cgroup_directories(self.cgroup_parent, "/gantry") if self.base.name in path}

    def command(self, *arguments: str) -> list[str]:
        """``arguments`` as a command line that runs inside."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "--", *arguments]

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program inside. What is returned is ``nsenter``; the program is its child in the pid namespace."""
        return subprocess.Popen(self.command(*arguments), cwd=str(REPOSITORY), env=self.environment(), **options)

    def environment(self) -> dict[str, str]:
        """Our environment, the interpreter's programs first on PATH, no engine variables of the outside."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "GANTRY_"))}
        env["PATH"] = f"{Path(sys.executable).parent}:{env.get('PATH', '')}:/usr/sbin:/sbin"
        env["HOME"] = str(self.base)
        return {**env, **self._variables}

    def run(
        self, *arguments: str, stdin: bytes | IO[bytes] | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end; output as text."""
        source: dict[str, Any] = (
            {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
        )
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=str(REPOSITORY),
            env=self.environment(),
            **source,
        )
        return subprocess.CompletedProcess(
            arguments, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def check(self, *arguments: str, stdin: bytes | IO[bytes] | None = None, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Run a program inside; its stdout. A failure shows both outputs."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"{arguments} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def processes(self) -> dict[int, str]:
        """Command lines of the processes inside by outer pid, without PID 1 and without helpers of the test."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found: dict[int, str] = {}
        known: dict[int, bool] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.pid:
                continue
            with contextlib.suppress(OSError):
                if not self._within(int(entry), namespace, known):
                    continue
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                found[int(entry)] = line or f"[{state}] {Path(f'/proc/{entry}/comm').read_text().strip()}"
        return found

    @staticmethod
    def _within(pid: int, namespace: str, known: dict[int, bool]) -> bool:
        """Whether ``pid`` or a parent of it lives in the pid namespace: containers have namespaces of their own.

        ``known`` holds the answers of one look at the machine, which has many processes with few parents.
        """
        asked = []
        while pid > 1 and pid not in known:
            asked.append(pid)
            if os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                known[pid] = True
            else:
                pid = parent(pid)
        known.update(dict.fromkeys(asked, known.get(pid, False)))
        return known.get(pid, False)

    def inner_pid(self, pid: int) -> str:
        """The number the process ``pid`` has inside this host; empty when it has gone or lives elsewhere."""
        with contextlib.suppress(OSError):
            # The number alone tells nothing: each host on this machine has a process 17.
            if self._within(pid, os.readlink(f"/proc/{self.pid}/ns/pid"), {}):
                return nspid(pid)[len(nspid(self.pid)) - 1]
        return ""

    def pids_of(self, *words: str) -> list[int]:
        """Outer pids of processes inside whose command line holds all ``words``."""
        return [pid for pid, line in self.processes().items() if all(word in line for word in words)]

    def outside(self, path: str) -> str:
        """Where ``path`` of this host is found from outside, whatever is mounted over its directory."""
        return f"/proc/{self.pid}/root{path}"

    def mounts(self) -> list[str]:
        """Mount points inside."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return sorted(line.split()[4] for line in lines)

    def links(self) -> list[str]:
        """Names of the network links inside, without loopback and the kernel's own tunnels."""
        out = self.check("ip", "-o", "link")
        return [name for line in out.splitlines() if (name := line.split(": ")[1].split("@")[0]) != "lo"]

    def firewall(self) -> str:
        """The nftables rule set inside, as text."""
        return self.check("nft", "list", "ruleset")

    def files(self, root: Path) -> list[str]:
        """Files and sockets below ``root`` as seen inside."""
        return sorted(self.check("find", str(root), "-mindepth", "1", "!", "-type", "d").split())

    def leftovers(self) -> dict[str, Any]:
        """Everything on the host that was not there before; empty when the engine cleaned up.

        What has ended and is not reaped yet gets a moment.
        """
        deadline = time.monotonic() + REAPED_SECONDS
        while any(line.startswith("[Z]") for line in self.processes().values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        found: dict[str, Any] = {
            "processes": self.processes(),
            "mounts": [m for m in self.mounts() if m not in self._mounts_before],
            "links": self.links(),
            "firewall": self.firewall(),
            "run files": self.files(self.exec_root),
            "cgroups": sorted(self._cgroups()),
        }
        return {what: value for what, value in found.items() if value}


def parent(pid: int) -> int:
    """The parent's number. Raises ``OSError`` when the process has gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def nspid(pid: int) -> Sequence[str]:
    """The numbers ``pid`` has in its pid namespaces, ours first (proc_pid_status(5), NSpid)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    return ()


def is_at_rest(shim: int) -> bool:
    """Whether the process is a shim that waits for something to do: of the files of one, it has but the lock open."""
    try:
        held = {os.readlink(link).rpartition("/")[2] for link in Path(f"/proc/{shim}/fd").iterdir()}
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has just gone
    return "shim.lock" in held and "events" not in held


@contextlib.contextmanager
def private_host(disk_size: str = "") -> Iterator[PrivateHost]:
    """A ``PrivateHost`` for one block."""
    with PrivateHost(disk_size=disk_size) as host:
        yield host
