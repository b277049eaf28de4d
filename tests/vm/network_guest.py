"""Runs in the virtual machine, as root: the suite of network drivers, on a kernel that has ipvlan, VLANs and SCTP.

Prints ``== begin``, one line ``ok NAME`` or ``not ok NAME: why`` for each test, ``== end``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parents[2]
PLACES = (str(CODE), str(CODE / "site-packages"))
MODULES = ("ipvlan", "macvlan", "8021q", "dummy", "bridge", "veth", "nf_tables", "nft_masq", "nft_fib_inet")
SUITE = CODE / "tests/integration/network/test_network_drivers.py"
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:terminal", "-c", "/dev/null", "--import-mode=importlib")


class Printer:
    """A plugin of pytest that says what the host reads."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            sys.stdout.write(f"not ok {name}: {str(report.longrepr)[-1500:]!r}\n")
        elif report.skipped:
            sys.stdout.write(f"ok {name} # skipped: {report.longrepr[2]}\n")
        elif report.when == "call":
            sys.stdout.write(f"ok {name} ({report.duration:.1f} s)\n")
        sys.stdout.flush()


def main() -> None:
    sys.path[:0] = PLACES
    os.environ["PYTHONPATH"] = ":".join(PLACES)  # the DNS server is a process of its own
    import pytest

    for module in MODULES:
        subprocess.run(["modprobe", module], check=False)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True)
    sys.stdout.write("== begin\n")
    only = Path("/proc/cmdline").read_text().partition("gantry.only=")[2].split(" ")[0].strip()
    pytest.main([*OPTIONS, "--rootdir", str(CODE), "-k", only, str(SUITE)], plugins=[Printer()])
    sys.stdout.write("== end\n")


if __name__ == "__main__":
    main()
