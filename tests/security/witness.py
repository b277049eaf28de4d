"""What the tests of attacks share: who is attacked, and how a peer is.

Rule: an attack is one function that says whether it got what it wanted. It runs against this runtime, where it must
fail, and against a witness, where it must succeed: this runtime with that one defence taken out by the test, and where
Debian's runc 1.1.5 or crun 1.8.1 has the hole, the real thing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from runc_py.errors import RuntimeFailure
from tests.integration.runc_py.conftest import Bundle

OURS, UNDEFENDED = "ours", "undefended"
HOLES = {"runc": "runc version 1.1.5+ds1", "crun": "crun version 1.8.1"}
"""The versions of Debian 12, which have the holes of 2025."""


@pytest.fixture(params=[OURS, UNDEFENDED])
def defended(request: pytest.FixtureRequest) -> bool:
    """Whether the attack meets the defence."""
    return bool(request.param == OURS)


@pytest.fixture(params=["runc", "crun"])
def peer(request: pytest.FixtureRequest) -> str:
    """A runtime that has the holes of 2025."""
    name: str = request.param
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"needs {HOLES[name]}")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if not said.startswith(HOLES[name]):
        pytest.skip(f"needs {HOLES[name]}, this is {said.splitlines()[0]}")
    return name


def by_peer(bundle: Bundle, name: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle with a peer. crun wants no controllers in a hybrid host's v2 tree: it gets a view without."""
    bundle.spec["ociVersion"] = "1.0.2"
    bundle.save()
    command = [name, "--root", f"{bundle.state}-{name}", "run", bundle.id]
    if name == "crun":
        hidden = "f=/sys/fs/cgroup/unified/cgroup.controllers; [ ! -e $f ] || mount --bind /dev/null $f; exec "
        command = ["unshare", "--mount", "sh", "-c", hidden + '"$@"', "sh", *command]
    if wrapper:
        command = [*wrapper, " ".join(f"'{word}'" for word in command), "/dev/null"]
    return subprocess.run(
        command, cwd=bundle.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def without_mount(bundle: Bundle, *prefixes: str) -> None:
    """Leave those mounts out of the spec: what is there is the image's."""
    kept = [entry for entry in bundle.spec["mounts"] if not entry["destination"].startswith(prefixes)]
    bundle.spec["mounts"] = kept
    bundle.spec["root"]["readonly"] = False


def runs(bundle: Bundle) -> str:
    """What the container printed; "" when the runtime refused to make it."""
    try:
        return bundle.in_process()[1]
    except RuntimeFailure:
        return ""


def in_child(work: Callable[[], bool]) -> bool:
    """What ``work`` says, in a process that may change itself."""
    pid = os.fork()
    if pid == 0:
        answer = 2
        try:
            answer = int(work())
        finally:
            os._exit(answer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 1
