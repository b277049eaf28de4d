"""An ordinary user runs containers: no root, no cgroup of one's own, one id mapped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runc_py.conftest import REPOSITORY

pytestmark = pytest.mark.root

PYTHON = "/usr/bin/python3"
UID = 1234


class User:
    """A copy of the runtime that the user can read (the test's interpreter may be in root's home), and a bundle."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(REPOSITORY / "runc_py", directory / "runc_py", ignore=shutil.ignore_patterns("__pycache__"))
        self.bundle = directory / "bundle"
        for name in ("bin", "proc", "sys", "dev", "tmp"):
            (self.bundle / "rootfs" / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox, "busybox is missing: apt-get install busybox-static"
        for name in ("sh", "id", "sleep", "cat"):
            shutil.copy(busybox, self.bundle / "rootfs/bin" / name)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(directory)], check=True)
        assert self("spec", "--rootless").returncode == 0

    def __call__(self, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """Run the command; ``quiet`` for what leaves a process behind that would keep our pipes open."""
        command = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", PYTHON, "-m", "runc_py.main"]
        own = str(self.directory)
        environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": own, "PYTHONPATH": own}
        return subprocess.run(
            [*command, *arguments],
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=self.bundle,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def configure(self, *arguments: str, **changes: object) -> None:
        path = self.bundle / "config.json"
        spec = json.loads(path.read_text())
        spec["process"].update(terminal=False, args=list(arguments))
        spec["linux"].update(changes)
        path.write_text(json.dumps(spec))


@pytest.fixture
def user() -> Iterator[User]:
    if not os.access(PYTHON, os.X_OK):
        pytest.skip(f"needs {PYTHON}, which any user may run")
    with tempfile.TemporaryDirectory(prefix="gantry-user-") as directory:
        os.chmod(directory, 0o755)
        yield User(Path(directory))


def test_run_exec_and_delete(user: User) -> None:
    user.configure("sh", "-c", "id -u; cat /proc/self/uid_map; exit 4")
    done = user("run", "one")
    assert done.returncode == 4, done.stderr
    assert done.stdout.split() == ["0", "0", str(UID), "1"]
    user.configure("sleep", "1000")
    assert user("create", "two", quiet=True).returncode == 0
    assert user("start", "two").returncode == 0
    try:
        done = user("exec", "two", "sh", "-c", "id -u; exit 3")
        assert (done.returncode, done.stdout) == (3, "0\n"), done.stderr
    finally:
        done = user("delete", "--force", "two")
    assert done.returncode == 0, done.stderr
    assert user("list", "--quiet").stdout == ""


def test_limits_that_cannot_be_kept_are_refused(user: User) -> None:
    user.configure("id", resources={"pids": {"limit": 5}})
    done = user("run", "one")
    assert done.returncode == 1
    assert "cgroup" in done.stderr
    assert user("list", "--quiet").stdout == ""
