"""Orphans that the supervisor collects: a shim finds out how they ended on any kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from containerd_py.tasks import reaper
from shim import exits


@pytest.mark.parametrize("code", [0, 7, 255])
def test_a_shim_reads_what_the_supervisor_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(exits, "status_from_pidfd", lambda pidfd: None)  # a kernel before Linux 6.15
    (tmp_path / reaper.ENDED).mkdir()
    collector = reaper.Reaper(str(tmp_path / reaper.ENDED))
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    zygote = str(tmp_path / "zygote.sock")  # another one by now, or none
    status = exits.status_of_orphan(pidfd, pid, zygote)
    assert status is not None and exits.exit_status(status) == code, "a zombie tells it itself"
    assert collector.status(pid) is not None
    status = exits.status_of_orphan(pidfd, pid, zygote)
    assert status is not None and exits.exit_status(status) == code
    os.close(pidfd)
    assert exits.status_of_orphan(-1, pid + 1, zygote) is None


def test_old_statuses_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "REMEMBERED", 2)
    collector = reaper.Reaper(str(tmp_path))
    pids = [os.posix_spawn("/bin/true", ["true"], os.environ) for _ in range(3)]
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        collector.status(pid)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(str(pid) for pid in pids[1:])
