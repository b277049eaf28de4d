"""BuildKit's protocol from far away: over TLS, as a build agent uses it, with the result pushed to a registry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.buildx import MISSING_BUILDX, Buildx
from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for
from tests.support.registry import running_registry

TCP = "127.0.0.1:2376"
pytestmark = pytest.mark.skipif(not Buildx.there(), reason=MISSING_BUILDX)


@pytest.mark.timeout(240)
def test_a_remote_engine_builds_pushes_and_cancels(busybox_tar: bytes, tmp_path: Path) -> None:
    with PrivateHost() as host:
        certs = tmp_path / "certs"
        host.check(sys.executable, "-m", "cli.main", "certs", "init", "--dir", str(certs), "--host", "127.0.0.1")
        engine = Engine(
            host, "-H", f"unix://{host.exec_root}/gantry.sock", "-H", f"tcp://{TCP}", "--tlsverify",
            "--tlscacert", f"{certs}/ca.pem", "--tlscert", f"{certs}/server-cert.pem",
            "--tlskey", f"{certs}/server-key.pem",
        )  # fmt: skip
        engine.start()
        engine.docker("import", "-", "busybox:latest", stdin=busybox_tar)
        (tmp_path / "context").mkdir()
        build = Buildx(engine, tmp_path)
        far = {"DOCKER_HOST": f"tcp://{TCP}", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certs)}
        build.write("Dockerfile", "FROM busybox\nCOPY big /big\n")
        (build.context / "big").write_bytes(b"z" * (20 << 20))
        with running_registry(host.base / "registry", host=host) as registry:
            name = f"{registry}/built:1"
            done = build.run("buildx", "build", "--push", "-t", name, ".", environment=far)
            assert done.returncode == 0, f"{done.stderr}{engine.log_text()}"
            assert '"schemaVersion"' in host.check(
                "skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"
            )
        assert engine.docker("run", "--rm", name, "wc", "-c", "/big").stdout.split()[0] == str(20 << 20)
        build.write("Dockerfile", "FROM busybox\nRUN sleep 2718.28\n")
        client = host.popen(*build.command("build", ".", environment=far))
        wait_for(lambda: host.pids_of("sleep", "2718.28"), "the step to run")
        for pid in host.pids_of("docker-buildx", "build"):
            host.run("kill", "-9", host.inner_pid(pid))
        client.wait(20)
        wait_for(lambda: not host.pids_of("sleep", "2718.28"), "the step to be killed")
        wait_for(lambda: not engine.docker("ps", "-aq").stdout, "its container to go")
        engine.down()
        assert host.leftovers() == {}
