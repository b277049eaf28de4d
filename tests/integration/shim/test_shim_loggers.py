"""``binary://``: logging programs of the client's, with and without a terminal, and through the death of the shim."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.shim.conftest import CallError, Host, wait_until

pytestmark = pytest.mark.root

PROGRAM = f"""#!{sys.executable} -I
import os, sys
out = sys.argv[2]
with open(out + ".who", "w") as file:
    file.write(" ".join([*sys.argv[1:], os.environ["CONTAINER_ID"], os.environ["CONTAINER_NAMESPACE"]]))
os.close(5)
import threading
def copy(number, name):
    with open(number, "rb") as source, open(out + name, "wb", buffering=0) as target:
        while data := source.read1(65536):
            target.write(data)
threads = [threading.Thread(target=copy, args=one) for one in ((3, ".out"), (4, ".err"))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
open(out + ".end", "w").close()
"""


@pytest.fixture
def logger(tmp_path: Path) -> str:
    """The URI of a program that writes what it gets to files beside itself."""
    program = tmp_path / "logger"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return f"binary://{program}?{'to'}={tmp_path}/log"


def test_output_goes_to_the_program(host: Host, logger: str, tmp_path: Path) -> None:
    shim = host.shim("a", ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert shim.run(stdout=logger, stderr=logger) == 3
    wait_until((tmp_path / "log.end").exists)
    assert (tmp_path / "log.who").read_text() == f"to {tmp_path}/log a test"
    assert (tmp_path / "log.out").read_text() == "out\n"
    assert (tmp_path / "log.err").read_text() == "err\n"
    shim.delete()


def test_a_terminal_goes_to_the_program(host: Host, logger: str, tmp_path: Path) -> None:
    shim = host.shim("a", ["sh", "-c", "echo out; echo err >&2"], terminal=True)
    assert shim.run(stdout=logger, stderr="", terminal=True) == 0
    shim.delete()
    wait_until((tmp_path / "log.end").exists)
    assert (tmp_path / "log.out").read_bytes() == b"out\r\nerr\r\n"


def test_the_program_outlives_the_shim(host: Host, logger: str, tmp_path: Path) -> None:
    shim = host.shim("a", ["sh", "-c", "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 2"])
    shim.create(stdout=logger, stderr=logger)
    shim.start()
    wait_until(lambda: (tmp_path / "log.out").exists() and (tmp_path / "log.out").read_bytes())
    shim.kill_shim()
    shim.restore()
    assert shim.wait() == 2
    shim.delete()
    wait_until((tmp_path / "log.end").exists)
    assert (tmp_path / "log.out").read_text() == "".join(f"{n}\n" for n in range(1, 51))


def test_a_program_that_is_not_there_is_an_error(host: Host) -> None:
    shim = host.shim("a", ["true"])
    with pytest.raises(CallError, match="logging program /no/such does not exist"):
        shim.create(stdout="binary:///no/such", stderr="binary:///no/such")


def test_memory_is_out_while_the_container_goes_on(host: Host) -> None:
    """A child of init's that is killed for want of memory is told at once, not with the exit."""
    hog = "sh -c 'x=a; while :; do x=$x$x; done'; echo survived; sleep 60"
    limits = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    shim = host.shim("a", ["sh", "-c", hog], resources=limits)
    shim.create()
    shim.start()
    host.events.wait_for("/tasks/oom")
    wait_until(lambda: shim.output() == b"survived\n")
    assert "/tasks/exit" not in host.events.topics()
    shim.client.call("Kill", id="a", signal=9)
    assert shim.wait() == 137
