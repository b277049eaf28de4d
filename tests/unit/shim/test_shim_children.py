"""The shim collects its dead children while it waits for a runtime's program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHIM = """
import os, sys
from shim.commandline import CommandLine
from shim.exits import Children, exit_status

children = Children()
runtime = CommandLine(sys.argv[1], sys.argv[2], False, sys.argv[2], sys.argv[2], children)
helper = os.fork()
if helper == 0:
    os._exit(7)
os.waitid(os.P_PID, helper, os.WEXITED | os.WNOWAIT)
with open(f"{sys.argv[2]}/helper", "w") as file:
    file.write(str(helper))
runtime.delete("c1")
assert [(pid, exit_status(status)) for pid, status in children.ended()] == [(helper, 7)]
assert children.ended() == []
"""

RUNTIME = """#!/bin/sh
# Fails, as gVisor's does, while a helper of the container is still somebody's zombie.
for _ in $(seq 300); do
    kill -0 $(cat {directory}/helper) 2>/dev/null || exit 0
    sleep 0.01
done
echo the helper is still there
exit 1
"""


def test_a_delete_that_waits_for_a_helper_sees_its_end(tmp_path: Path) -> None:
    program = tmp_path / "runtime"
    program.write_text(RUNTIME.format(directory=tmp_path))
    program.chmod(0o755)
    subprocess.run([sys.executable, "-c", SHIM, program, tmp_path], check=True, timeout=30)
