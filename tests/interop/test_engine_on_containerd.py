"""The engine on the distribution's own containerd, as ``gantryd --containerd`` has it: what is an extension of ours is
done without there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for

ADDRESS = "/run/containerd/test.sock"


@pytest.fixture(scope="module")
def engine(busybox_tar: bytes) -> Iterator[Engine]:
    """An engine that starts no containerd-py, with an image."""
    assert shutil.which("containerd") and shutil.which("ctr"), "install containerd"
    with PrivateHost() as host:
        config = host.base / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{host.base}/root"\nstate = "/run/containerd/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{ADDRESS}"\n'
        )
        host.check("mkdir", "-p", "/run/containerd")
        host.check("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
        with open(host.base / "containerd.log", "wb") as log:
            host.popen("containerd", "-c", str(config), stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: host.run("ctr", "-a", ADDRESS, "version").returncode == 0, "containerd to answer")
        made = Engine(host, "--containerd", ADDRESS)
        made.start()
        made.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
        yield made
        made.down()


def test_containers_run_and_are_committed(engine: Engine) -> None:
    script = "echo new > /new; rm /www/index.html"
    engine.docker("run", "--name", "changed", "--network", "none", "busybox", "sh", "-ec", script)
    engine.docker("commit", "changed", "made:1")
    seen = engine.docker("run", "--rm", "--network", "none", "made:1", "sh", "-c", "cat /new; ls /www")
    assert seen.stdout == "new\n"
    engine.docker("rm", "changed")
    engine.docker("rmi", "made:1")
    snapshots = engine.host.check("ctr", "-a", ADDRESS, "-n", "moby", "snapshots", "ls")
    assert "extract-" not in snapshots
