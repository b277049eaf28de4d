"""Forks in which the shim runs the runtime."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oci import errors
from runc_py.runtime import Launched, Stdio
from shim import rehearsal
from shim.apart import Killed, apart
from shim.bundle import claim, lock_helper
from shim.runtimes import CreateRequest, InProcess, no_options


def test_values_and_descriptors_come_back(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    values, (copy,) = apart(str(tmp_path), lambda: ({"pid": os.getpid()}, [write_end]))
    assert values["pid"] != os.getpid()
    os.write(copy, b"x")
    assert os.read(read_end, 1) == b"x"
    for descriptor in (read_end, write_end, copy):
        os.close(descriptor)


def test_errors_keep_their_kind_and_hint(tmp_path: Path) -> None:
    def work() -> tuple[dict[str, object], list[int]]:
        raise errors.NotFound("no such thing", hint="make one")

    with pytest.raises(errors.NotFound) as caught:
        apart(str(tmp_path), work)
    assert (caught.value.message, caught.value.hint) == ("no such thing", "make one")


def test_a_killed_fork_is_an_error_and_no_zombie(tmp_path: Path) -> None:
    def work() -> tuple[dict[str, object], list[int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}, []

    with pytest.raises(Killed):
        apart(str(tmp_path), work)


class Mortal:
    """A runtime whose first attempts are killed in the middle; notes in a file what is asked of it."""

    def __init__(self, journal: Path, deaths: int) -> None:
        self.journal, self.deaths = journal, deaths
        journal.touch()

    def _note(self, word: str) -> None:
        with self.journal.open("a") as file:
            file.write(f"{word}\n")

    def _perhaps_die(self) -> None:
        if len([word for word in self.words() if word != "delete"]) <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)

    def words(self) -> list[str]:
        return self.journal.read_text().split()

    def create(self, *_: object, **_options: object) -> Launched:
        self._note("create")
        self._perhaps_die()
        return Launched(os.getpid(), os.open("/dev/null", os.O_RDONLY), None)

    def start(self, _container_id: str, *, resume: bool) -> None:
        self._note("resume" if resume else "start")
        self._perhaps_die()

    def delete(self, _container_id: str, *, force: bool) -> None:
        self._note("delete")


def mortal(tmp_path: Path, deaths: int) -> tuple[InProcess, Mortal]:
    inner = Mortal(tmp_path / "journal", deaths)
    runtime = InProcess(str(tmp_path), "cgroupfs", str(tmp_path))
    runtime.__dict__["_runtime"] = inner
    return runtime, inner


def test_a_create_whose_fork_is_killed_is_undone_and_done_again(tmp_path: Path) -> None:
    runtime, inner = mortal(tmp_path, 2)
    os.close(runtime.create(CreateRequest("a", str(tmp_path), Stdio(0, 1, 2), [], no_options())).pidfd)
    assert inner.words() == ["create", "delete", "create", "delete", "create"]


def test_a_create_that_is_killed_every_time_leaves_nothing(tmp_path: Path) -> None:
    runtime, inner = mortal(tmp_path, 100)
    with pytest.raises(Killed):
        runtime.create(CreateRequest("a", str(tmp_path), Stdio(0, 1, 2), [], no_options()))
    assert inner.words()[-2:] == ["create", "delete"]


def test_a_start_whose_fork_is_killed_is_carried_on_with(tmp_path: Path) -> None:
    runtime, inner = mortal(tmp_path, 2)
    runtime.start("a")
    assert inner.words() == ["start", "resume", "resume"]


_SHIM = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from shim.apart import apart
def work():
    sys.stdout.write(f"{os.getpid()}\\n"); sys.stdout.flush()
    time.sleep(60)
    return {}, []
apart(sys.argv[1], work)
"""


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while not _gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fork_dies_with_its_shim(tmp_path: Path) -> None:
    root = str(Path(rehearsal.__file__).parents[1])
    command = [sys.executable, "-c", _SHIM, str(tmp_path), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shim:
        assert shim.stdout is not None
        fork = int(shim.stdout.readline())
        shim.kill()
    _wait_gone(fork)


_HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from shim.bundle import lock_helper
lock_helper(sys.argv[1])
print("locked", flush=True)
time.sleep(60)
"""


def test_the_next_shim_kills_a_fork_that_is_left(tmp_path: Path) -> None:
    root = str(Path(rehearsal.__file__).parents[1])
    command = [sys.executable, "-c", _HOLDER, str(tmp_path), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        claim(str(tmp_path))
        assert holder.wait(20) == -signal.SIGKILL


def test_a_shim_and_its_fork_do_not_contend(tmp_path: Path) -> None:
    def work() -> tuple[dict[str, object], list[int]]:
        lock_helper(str(tmp_path))
        return {"done": 1}, []

    claim(str(tmp_path))
    values, _ = apart(str(tmp_path), work)
    assert values == {"done": 1}


def test_a_rehearsal_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import gc

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    rehearsal.rehearse(str(tmp_path))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []
    assert "failed" not in capfd.readouterr().err
