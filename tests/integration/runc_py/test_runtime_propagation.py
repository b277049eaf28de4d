"""Mounts that the container shares with its host: what is mounted on one side arrives on the other, or does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runc_py import syscalls
from tests.integration.runc_py.conftest import Bundle, wait

pytestmark = pytest.mark.root

MOUNT = "mkdir -p /vol/made; mount -t tmpfs inside /vol/made; grep -q ' /vol/made ' /proc/mounts"


def on_a_host_of_its_own(work: Callable[[], None]) -> None:
    """``work`` in a child with a mount namespace in which everything is shared, as systemd has it."""
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
            syscalls.mount(None, "/", None, syscalls.MS_SHARED | syscalls.MS_REC)
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def volume(bundle: Bundle) -> Path:
    """A directory of the host that is ``/vol`` in the container, which may mount."""
    path = bundle.directory / "volume"
    path.mkdir()
    for kind in bundle.process["capabilities"].values():
        kind.append("CAP_SYS_ADMIN")
    bundle.spec["root"]["readonly"] = False
    return path


def run(bundle: Bundle, volume: Path, propagation: str, script: str, between: Callable[[], None]) -> str:
    """Run ``script`` with the volume; ``between`` happens when it has said that it is ready."""
    mount = {"destination": "/vol", "type": "bind", "source": str(volume), "options": ["rbind", propagation]}
    bundle.spec["mounts"].append(mount)
    bundle.shell(f"set -e; {script}")
    with bundle.captured() as capture:
        launched = bundle.runtime.create(bundle.id, str(bundle.directory), stdio=capture.stdio, spec=bundle.copied())
        try:
            bundle.runtime.start(bundle.id)
            while "ready" not in capture.text() and not os.waitid(os.P_PID, launched.pid, WATCHED):
                time.sleep(0.01)
            between()
            code = wait(launched)
        finally:
            bundle.runtime.delete(bundle.id, force=True)
        assert code == 0, capture.text()
        return capture.text()


WATCHED = os.WEXITED | os.WNOHANG | os.WNOWAIT
WAIT = "echo ready; while ! test -e /vol/go; do sleep 0.02; done"


@pytest.mark.parametrize(("kind", "root"), [("mount", "rshared"), ("mount", "rslave"), ("directory", "rslave")])
def test_what_a_container_mounts_in_a_shared_volume_is_on_the_host(
    bundle: Bundle, volume: Path, kind: str, root: str
) -> None:
    """A directory of the mount that the rootfs is on is not: that one is private, or pivot_root(2) would refuse it."""
    bundle.linux["rootfsPropagation"] = root

    def work() -> None:
        if kind == "mount":
            syscalls.mount("volume", str(volume), "tmpfs", 0)

        def look() -> None:
            seen = f" {volume}/made " in Path("/proc/self/mountinfo").read_text()
            # With a slave root only the container's own group is shared: the host is its master, as in runc.
            assert seen == (root == "rshared"), root
            (volume / "go").touch()

        run(bundle, volume, "rshared", f"{MOUNT}; {WAIT}", look)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert f" {bundle.rootfs} " not in mounts
        assert " /proc " in mounts, "the host's own mounts were taken away"

    on_a_host_of_its_own(work)


@pytest.mark.parametrize("propagation", ["rslave", "rprivate"])
def test_what_the_host_mounts_arrives_in_a_slave_volume(bundle: Bundle, volume: Path, propagation: str) -> None:
    def work() -> None:
        def mount() -> None:
            (volume / "later").mkdir()
            syscalls.mount("later", str(volume / "later"), "tmpfs", 0)
            (volume / "later" / "file").touch()
            (volume / "go").touch()

        text = run(bundle, volume, propagation, f"{WAIT}; ls /vol/later", mount)
        assert ("file" in text) == (propagation == "rslave")

    on_a_host_of_its_own(work)
