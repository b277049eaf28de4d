"""The interpreter's file stays out of containers' reach (CVE-2019-5736), however the command came to a safe one.

Three ways lead there: the exchange of the executable while the command runs, a second start from a read-only mount, and
a second start from a sealed copy. Each is looked at from outside: what ``/proc/<pid>/exe`` of a container's init is.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runc_py import conftest
from tests.integration.runc_py.conftest import REPOSITORY, Bundle

pytestmark = pytest.mark.root

bundle = conftest.bundle
busybox_root = conftest.busybox_root
START = f"import sys; sys.path.append({str(REPOSITORY)!r}); {{before}}from runc_py.main import main; main()"
WAYS = {
    "exchanged": ("-I", "-S", ""),
    "mounted": ("-I", "-s", ""),
    "copied": ("-I", "-s", "from runc_py import seal; seal._read_only_mount = seal._sealed_copy; "),
    "unexchangeable": ("-I", "-S", "from runc_py import seal; seal._SMALL = 0; "),
}
_F_GET_SEALS, _SEALS = 1034, 0xF


def start(way: str, bundle: Bundle, *arguments: str) -> tuple[int, str]:
    """The command by one of the ways: (exit status, what it wrote).

    Its output goes to a file: init holds a copy of the descriptor, so that the end of a pipe would not come.
    """
    *flags, before = WAYS[way]
    bundle.save()
    command = [sys.executable, *flags, "-c", START.format(before=before), "--root", str(bundle.state), *arguments]
    output = bundle.directory / "output"
    with output.open("w") as file:
        done = subprocess.run(
            command, cwd=bundle.directory, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=60, check=False
        )
    return done.returncode, output.read_text()


@pytest.fixture(params=WAYS)
def init(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[tuple[str, int]]:
    """(way, pid) of the init of a created container, which is still our interpreter."""
    bundle.process["args"] = ["true"]
    pid_file = bundle.directory / "pid"
    status, output = start(request.param, bundle, "create", "--pid-file", str(pid_file), bundle.id)
    assert status == 0, output
    yield request.param, int(pid_file.read_text())
    bundle.runtime.delete(bundle.id, force=True)


def test_inits_executable_cannot_be_written(init: tuple[str, int]) -> None:
    way, pid = init
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
    try:
        if way == "copied":
            assert fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS == _SEALS
        else:
            assert os.fstatvfs(fd).f_flag & os.ST_RDONLY
    finally:
        os.close(fd)
    with pytest.raises(OSError):
        os.open(f"/proc/{pid}/exe", os.O_WRONLY)


def test_no_page_of_the_hosts_file_is_mapped(init: tuple[str, int]) -> None:
    way, pid = init
    maps = Path(f"/proc/{pid}/maps").read_text()
    interpreter = os.path.realpath(sys.executable)
    assert not [line for line in maps.splitlines() if line.endswith(interpreter)], way


def test_the_command_ends_as_it_should(bundle: Bundle) -> None:
    for number, way in enumerate(WAYS):
        bundle.shell(f"exit {number + 3}")
        status, output = start(way, bundle, "run", bundle.id)
        assert status == number + 3, (way, output)
