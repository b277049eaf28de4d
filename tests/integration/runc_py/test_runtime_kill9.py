"""kill -9 of the runtime anywhere in create, start and delete: ``delete --force`` then leaves nothing.

The runtime runs in a child of the test that counts its own calls and kills itself at the n-th; n walks over the whole
operation. Orphans come to the test, which is a subreaper, so a process that is left over is seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runc_py import light, state, syscalls
from runc_py.runtime import Runtime, Stdio
from runc_py.waiting import WaitingInit
from tests.integration.runc_py.conftest import Bundle, cgroups_of

pytestmark = pytest.mark.root

POINTS = 24
NEVER = 1 << 30
Operation = Callable[[Bundle], None]


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    others.clear()
    others.update(children())
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    yield
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)


def create(bundle: Bundle) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    launched = bundle.runtime.create(
        bundle.id, str(bundle.directory), stdio=Stdio(null, null, null), spec=bundle.copied()
    )
    for fd in (null, launched.pidfd):
        os.close(fd)


def create_with_waiting_init(bundle: Bundle) -> None:
    bundle.runtime.waiting = WaitingInit()
    create(bundle)


def start(bundle: Bundle) -> None:
    bundle.runtime.start(bundle.id)


def delete(bundle: Bundle) -> None:
    bundle.runtime.delete(bundle.id, force=True)


BEFORE: dict[Operation, tuple[Operation, ...]] = {
    create: (),
    create_with_waiting_init: (),
    start: (create,),
    delete: (create, start),
}


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def killed_after(calls: int, operation: Operation, bundle: Bundle) -> bool:
    """Run ``operation`` until its ``calls``-th call; whether it was killed there and not done before."""

    def work() -> None:
        own, seen = os.getpid(), 0

        def count(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal seen
            if event not in ("call", "c_call"):
                return
            seen += 1
            if seen >= calls and os.getpid() == own:
                os.kill(own, signal.SIGKILL)

        sys.setprofile(count)
        operation(bundle)
        sys.setprofile(None)

    status = in_child(work)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0
    return False


def number_of_calls(operation: Operation, bundle: Bundle) -> int:
    reader, writer = os.pipe()

    def work() -> None:
        own, seen = os.getpid(), 0

        def count(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal seen
            seen += event in ("call", "c_call") and os.getpid() == own

        sys.setprofile(count)
        operation(bundle)
        sys.setprofile(None)
        os.write(writer, str(seen).encode())

    assert in_child(work) == 0
    os.close(writer)
    text = os.read(reader, 64)
    os.close(reader)
    return int(text)


others: set[int] = set()
"""Children of this process that belong to other tests: engines and hosts of the whole session."""


def children() -> list[int]:
    """Our children without those of other tests."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, listed) if pid not in others]


def reap_all(seconds: float = 10) -> list[int]:
    """Wait until every child has ended; those that have not."""
    deadline = time.monotonic() + seconds
    while (left := children()) and time.monotonic() < deadline:
        ended = [pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]]
        if not ended:
            time.sleep(0.005)
    return left


def leftovers(bundle: Bundle, mounts: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "processes": reap_all(),
        "state": [name for name in os.listdir(bundle.state) if not name.startswith(".")],
        "cgroups": cgroups_of(bundle.id),
        "mounts": Path("/proc/self/mountinfo").read_text() != mounts,
    }
    return {what: value for what, value in found.items() if value}


def clean_up(bundle: Bundle) -> None:
    """What an administrator does after a crash, in a process of its own."""
    assert in_child(lambda: Runtime(str(bundle.state)).delete(bundle.id, force=True)) == 0


@pytest.mark.parametrize("operation", [*BEFORE], ids=lambda operation: str(operation.__name__))
@pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "user-namespace"])
@pytest.mark.timeout(300)
def test_killed_anywhere(bundle: Bundle, operation: Operation, userns: bool) -> None:
    bundle.process["args"] = ["sleep", "1000"]
    if userns:
        bundle.linux["namespaces"].append({"type": "user"})
    mounts = Path("/proc/self/mountinfo").read_text()

    def prepare() -> None:
        for earlier in BEFORE[operation]:
            assert in_child(partial(earlier, bundle)) == 0

    prepare()
    total = number_of_calls(operation, bundle)
    clean_up(bundle)
    assert leftovers(bundle, mounts) == {}
    killed = 0
    for point in range(POINTS):
        calls = 1 + point * total // POINTS
        prepare()
        killed += killed_after(calls, operation, bundle)
        clean_up(bundle)
        assert leftovers(bundle, mounts) == {}, f"killed after {calls} of {total} calls"
    assert killed >= POINTS - 2


def test_the_runtime_dies_at_each_step_of_init(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the parent is killed when the child is at its n-th operation on the rootfs."""
    from runc_py import init

    bundle.process["args"] = ["sleep", "1000"]
    mounts = Path("/proc/self/mountinfo").read_text()
    real = init._run_operations
    reader, writer = os.pipe()
    steps = 0

    def announced(operations: Any, root: Any) -> None:
        for operation in operations:
            with contextlib.suppress(OSError):
                os.write(1, b"x")  # the child's stdout is the pipe
            real([operation], root)

    monkeypatch.setattr(init, "_run_operations", announced)

    def work() -> None:
        bundle.runtime.create(bundle.id, str(bundle.directory), stdio=Stdio(0, writer, 2), spec=bundle.copied())

    for stop_at in (1, 5, 10, 15, 20, 25):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                work()
            os._exit(0)
        for _ in range(stop_at):
            os.read(reader, 1)
            steps += 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        clean_up(bundle)
        assert leftovers(bundle, mounts) == {}, f"killed at operation {stop_at}"
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 1000)
        os.set_blocking(reader, True)
    os.close(reader)
    os.close(writer)
    assert steps


@pytest.mark.parametrize("told", [False, True])
def test_a_start_that_was_killed_is_carried_on_with(bundle: Bundle, told: bool) -> None:
    """Whoever starts connects, renames the socket, says so: killed in between, the next one gets init to run once."""
    bundle.shell("echo ran; exit 7")
    bundle.save()
    reader, writer = os.pipe()
    launched = bundle.runtime.create(bundle.id, str(bundle.directory), stdio=Stdio(0, writer, 2))
    os.close(writer)
    directory = f"{bundle.state}/{bundle.id}"
    for name in (state.START_SOCKET, state.STARTED_SOCKET):
        with light.open_socket(light.AF_UNIX, light.SOCK_SEQPACKET) as dying:
            dying.connect(f"{directory}/{name}")
            os.rename(f"{directory}/{name}", f"{directory}/{state.STARTED_SOCKET}")
            if told and name == state.STARTED_SOCKET:
                dying.send(b"s")
    bundle.runtime.start(bundle.id, resume=True)
    _, status = os.waitpid(launched.pid, 0)
    bundle.runtime.start(bundle.id, resume=True)
    with open(reader, "rb") as file:
        assert (os.waitstatus_to_exitcode(status), file.read()) == (7, b"ran\n")
    os.close(launched.pidfd)
    bundle.runtime.delete(bundle.id)


def test_a_start_that_was_killed_before_it_was_one_leaves_a_created_container(bundle: Bundle) -> None:
    bundle.shell("exit 3")
    bundle.save()
    launched = bundle.runtime.create(bundle.id, str(bundle.directory))
    with light.open_socket(light.AF_UNIX, light.SOCK_SEQPACKET) as dying:
        dying.connect(f"{bundle.state}/{bundle.id}/{state.START_SOCKET}")
    assert bundle.runtime.state(bundle.id)["status"] == "created"
    bundle.runtime.start(bundle.id)
    assert os.waitstatus_to_exitcode(os.waitpid(launched.pid, 0)[1]) == 3
    os.close(launched.pidfd)
    bundle.runtime.delete(bundle.id)
