"""Bundles with a busybox rootfs, and three ways to run them: runc-py's command, its Python interface, the real runc."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runc_py.runtime import Launched, Runtime, Stdio
from runc_py.template import default_spec
from runc_py.waiting import WaitingInit

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with busybox, its applets and a passwd file."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: apt-get install busybox-static"
    root = tmp_path_factory.mktemp("busybox")
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/ann"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name != "busybox":
            os.link(root / "bin/busybox", root / "bin" / name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
    root.chmod(0o755)
    return root


class Bundle:
    """A bundle of its own; ``spec`` is written by every run. ``id`` is unique, and so is its cgroup."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.directory = directory
        # Not below ``directory``: what sockets are called may have 107 bytes, and pytest's names are long.
        self.state = Path(tempfile.mkdtemp(prefix="gantry-")) / "state"
        self.rootfs = directory / "rootfs"
        self.id = f"gantry-test-{uuid.uuid4().hex[:12]}"
        self.runtime = Runtime(str(self.state))
        subprocess.run(["cp", "-al", str(source), str(self.rootfs)], check=True)
        self.opened: list[int] = []
        self.spec: dict[str, Any] = default_spec()
        self.process: dict[str, Any] = self.spec["process"]
        self.process["terminal"] = False
        self.process["rlimits"] = []
        self.linux: dict[str, Any] = self.spec["linux"]
        self.linux["cgroupsPath"] = f"/{self.id}"

    def shell(self, script: str) -> None:
        """Let the container run ``script``."""
        self.process["args"] = ["sh", "-c", script]

    def save(self) -> None:
        """Write config.json."""
        (self.directory / "config.json").write_text(json.dumps(self.spec))

    def command(self, *arguments: str, runtime: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run runc-py (or another runtime) with this bundle's state directory."""
        self.save()
        program = [runtime] if runtime else [sys.executable, "-m", "runc_py.main"]
        root = f"{self.state}-{runtime}" if runtime else str(self.state)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [*program, "--root", root, *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=environment,
            timeout=60,
            check=False,
            **options,
        )

    def run(self, runtime: str = "") -> subprocess.CompletedProcess[str]:
        """``run`` in the foreground."""
        return self.command("run", self.id, runtime=runtime)

    def output(self, script: str) -> str:
        """What ``script`` prints in the container; it must succeed."""
        self.shell(script)
        code, output = self.in_process()
        assert code == 0, output
        return output

    def in_process(self) -> tuple[int, str]:
        """create, start, wait and delete by the Python interface: (exit code, stdout and stderr)."""
        with self.captured() as capture:
            launched = self.runtime.create(self.id, str(self.directory), stdio=capture.stdio, spec=self.copied())
            self.opened.append(launched.pidfd)
            try:
                self.runtime.start(self.id)
                code = wait(launched._replace(pidfd=-1))
            finally:
                self.runtime.delete(self.id, force=True)
            return code, capture.text()

    def copied(self) -> dict[str, Any]:
        """The spec as it is now."""
        return copy.deepcopy(self.spec)

    def captured(self) -> Capture:
        """Descriptors for a process whose output is kept."""
        return Capture(self.directory / f"output-{uuid.uuid4().hex[:6]}")

    def sleeping(self) -> Launched:
        """A started container that does nothing."""
        self.process["args"] = ["sleep", "1000"]
        null = os.open(os.devnull, os.O_RDWR)
        try:
            launched = self.runtime.create(
                self.id, str(self.directory), stdio=Stdio(null, null, null), spec=self.copied()
            )
        finally:
            os.close(null)
        self.opened.append(launched.pidfd)
        self.runtime.start(self.id)
        return launched._replace(pidfd=-1)

    def exec(self, *arguments: str, **changes: Any) -> tuple[int, str]:
        """Run a command in the container: (exit code, output)."""
        process = {**self.process, "args": list(arguments), **changes}
        with self.captured() as capture:
            launched = self.runtime.exec(self.id, process, stdio=capture.stdio)
            return wait(launched), capture.text()


class Ahead(Runtime):
    """A runtime that has an init waiting for each container."""

    def create(self, *arguments: Any, **options: Any) -> Launched:
        self.waiting = made = WaitingInit()
        try:
            launched = super().create(*arguments, **options)
        finally:
            if self.waiting is not None:
                self.waiting.dismiss()
                self.waiting = None
        self.used = launched.pid == made.pid
        return launched


class Capture:
    """/dev/null as stdin, one file as stdout and stderr."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Capture:
        null = os.open(os.devnull, os.O_RDONLY)
        output = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.stdio = Stdio(null, output, output)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.stdio.stdin)
        os.close(self.stdio.stdout)

    def text(self) -> str:
        """What was written so far."""
        return self._path.read_text()


def wait(launched: Launched) -> int:
    """Reap a process; its exit status as a shell gives it."""
    _, status = os.waitpid(launched.pid, 0)
    if launched.pidfd >= 0:
        os.close(launched.pidfd)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


@pytest.fixture
def bundle(request: pytest.FixtureRequest, tmp_path: Path, busybox_root: Path) -> Iterator[Bundle]:
    """A bundle; afterwards its container must be gone, with its cgroup and without a mount left on the host."""
    made = Bundle(tmp_path, busybox_root)
    request.addfinalizer(functools.partial(shutil.rmtree, made.state.parent))
    mounts = Path("/proc/self/mountinfo").read_text()
    before = descriptors()
    yield made
    _end_all(made)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    left = descriptors() - before
    assert not left, f"left open: {sorted(left)}"
    assert not cgroups_of(made.id)


def descriptors() -> set[tuple[str, str]]:
    """What this process has open, by number and file; some of it may be closed later with tests' garbage.

    Without eventfds where an earlier test has spoken gRPC, which makes one at every fork; the runtime makes none.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    foreign = "anon_inode:[eventfd]" if "grpc" in sys.modules else None
    return {one for one in found if one[1] != foreign}


def cgroups_of(container_id: str) -> list[str]:
    """Cgroups of that name anywhere; others' may vanish while we look."""
    return [top for top, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(top) == container_id]


def _end_all(made: Bundle) -> None:
    for pidfd in made.opened:
        os.close(pidfd)
    for container in made.runtime.list():
        pid = container["pid"]
        made.runtime.delete(container["id"], force=True)
        if pid:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue
