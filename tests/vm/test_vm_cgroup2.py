"""The tests in the guest, where the machine has been built (``python -m tests.vm.machine build``)."""

from __future__ import annotations

import shutil

import pytest

from tests.vm import machine


@pytest.mark.timeout(900)
def test_the_runtime_on_cgroup_v2() -> None:
    if not machine.is_built() or not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs qemu-system-x86 and: python -m tests.vm.machine build")
    lines = machine.boot()
    assert any(line.startswith("ok ") for line in lines), lines
    assert not [line for line in lines if line.startswith("not ok")], "\n".join(lines)
