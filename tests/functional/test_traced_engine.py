"""An engine that writes spans does what it does without, whichever way its containers are made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.engine import Engine
from tests.support.host import wait_for


def test_containers_run_while_they_are_traced(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make_engine(GANTRY_TRACE=str(tmp_path))

    def spans() -> set[str]:
        return {json.loads(line)["name"] for path in tmp_path.iterdir() for line in path.read_text().splitlines()}

    def run() -> bool:
        assert engine.docker("run", "--rm", "--network", "none", "busybox", "echo", "a").stdout == "a\n"
        time.sleep(0.3)  # until there is a worker again, with an init that waits
        return "shim: worker of the runtime" in spans()

    wait_for(run, "a container that a worker made")
    assert engine.docker("run", "-d", "--name", "entered", "--network", "none", "busybox", "sleep", "1000").stdout
    assert engine.docker("exec", "entered", "echo", "b").stdout == "b\n"
    engine.docker("rm", "-f", "entered")
    assert {"init: set up", "init: root changed", "runtime: create", "shim: exit record"} <= spans()
