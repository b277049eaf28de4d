"""ipvlan, which this machine's kernel may lack, on one that has it: needs ``python -m tests.vm.machine build``."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.vm import machine


@pytest.mark.timeout(900)
def test_ipvlan_where_the_kernel_has_it() -> None:
    if not machine.is_built() or not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs qemu-system-x86 and: python -m tests.vm.machine build")
    if sys.version_info[:2] != machine.PYTHON:
        pytest.skip("compiled packages of this interpreter do not run on the guest's")
    lines = machine.boot(guest="network_guest", only="ipvlan")
    assert not [line for line in lines if line.startswith("not ok")], "\n".join(lines)
    passed = [line for line in lines if line.startswith("ok ") and "# skipped" not in line]
    for kind in ("[ipvlan-wire]", "[ipvlan-wire-l3]"):
        assert len([line for line in passed if kind in line]) >= 5, f"{kind}\n" + "\n".join(lines)
    assert any("a_vlan_parent" in line for line in passed), "\n".join(lines)
