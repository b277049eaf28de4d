"""The front costs nothing before its first client."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import engine.app
heavy = [name for name in sys.modules if name.startswith(("protos.buildkit", "hpack", "engine.buildkit."))]
assert heavy == ["engine.buildkit.front"], heavy
"""


def test_nothing_of_the_protocol_is_imported_at_the_start() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
