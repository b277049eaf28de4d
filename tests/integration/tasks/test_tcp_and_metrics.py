"""The daemon's two doors beyond its socket: gRPC over TCP with certificates, and Prometheus' page."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.tasks.supervisor import Supervisor
from tests.support.certificates import Authority
from tests.support.host import PrivateHost, wait_for

TCP, METRICS = "10.98.0.1:7443", "127.0.0.1:1338"
CLIENT = """
import sys, grpc
from google.protobuf.empty_pb2 import Empty
from protos.containerd import version_pb2_grpc
address, authority, certificate, key = sys.argv[1:]
read = lambda path: open(path, "rb").read() if path else None
if authority:
    proof = grpc.ssl_channel_credentials(read(authority), read(key), read(certificate))
    channel = grpc.secure_channel(address, proof)
else:
    channel = grpc.insecure_channel(address)
try:
    print(version_pb2_grpc.VersionStub(channel).Version(Empty(), timeout=10).revision)
except grpc.RpcError as error:
    sys.exit(error.code().name)
"""


class Listening(Supervisor):
    """A daemon that listens on TCP and tells its metrics."""

    flags: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        return super().command(*(arguments or self.flags))

    def version(self, authority: Path | str, pair: tuple[Path, Path] | None = None) -> tuple[int, str]:
        """Status and words of a client over TCP: the revision, or the error's name."""
        proof = pair or ("", "")
        done = self.host.run(sys.executable, "-c", CLIENT, TCP, *map(str, (authority, *proof)))
        return done.returncode, (done.stdout or done.stderr).split()[-1]

    def metrics(self) -> str:
        return self.host.check("curl", "-sf", f"http://{METRICS}/v1/metrics")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def daemon(busybox_tar: bytes, authority: Authority) -> Iterator[Listening]:
    with PrivateHost() as host:
        host.check("ip", "address", "add", "10.98.0.1/32", "dev", "lo")
        certificate, key = authority.server("10.98.0.1")
        daemon = Listening(host, busybox_tar)
        tls = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-ca", str(authority.ca))
        daemon.flags = ("--tcp-address", TCP, *tls, "--metrics-address", METRICS)
        daemon.start()
        yield daemon
        done = daemon.shutdown("--kill")
        assert done.returncode == 0, done.stderr


def test_who_has_a_certificate_of_the_authority_is_served(daemon: Listening, authority: Authority) -> None:
    assert daemon.version(authority.ca, authority.client("friend")) == (0, "gantry")


def test_everybody_else_is_refused(daemon: Listening, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other")
    refused = (1, "UNAVAILABLE")
    assert daemon.version(authority.ca) == refused, "no certificate"
    assert daemon.version(authority.ca, stranger.client("stranger")) == refused, "of another authority"
    assert daemon.version(authority.ca, authority.client("late", expired=True)) == refused, "an expired one"
    assert daemon.version("") == refused, "no TLS"
    assert daemon.version(stranger.ca, authority.client("careful")) == refused, "a client that does not believe us"


def test_files_that_are_no_certificates_are_named(daemon: Listening, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    other = (*Supervisor.command(daemon)[:3], "--root", str(tmp_path), "--state", str(daemon.host.base / "other"))
    done = daemon.host.run(*other, "--tcp-address", "127.0.0.1:7001", "--tls-cert", str(bad), "--tls-key", str(bad))
    assert done.returncode != 0
    assert "cannot use the TLS files" in done.stderr and str(bad) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (daemon.host.base / "other").exists(), "nothing was started for it"


def test_metrics_tell_of_calls_and_containers(daemon: Listening) -> None:
    daemon.create("seen", "sh", "-c", "while :; do :; done")
    daemon.start_task("seen")
    used = re.compile(r'container_(cpu_total|cpu_usage_usec)_\w+\{container_id="seen",namespace="moby"\} [1-9]')
    wait_for(lambda: used.search(daemon.metrics()), "processor time of the container")
    page = daemon.metrics()
    create = 'grpc_method="Create",grpc_service="containerd.services.tasks.v1.Tasks",grpc_type="unary"'
    assert f'grpc_server_handled_total{{grpc_code="OK",{create}}} 1' in page
    assert re.search(r"^process_resident_memory_bytes [1-9]", page, re.MULTILINE)
    daemon.signal("seen", 9)
    assert daemon.wait("seen") == 137
    daemon.delete("seen")
    assert 'container_id="seen"' not in daemon.metrics()
    code = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}")
    assert daemon.host.check(*code, f"http://{METRICS}/other") == "404"
    assert daemon.host.check(*code, "-X", "POST", f"http://{METRICS}/metrics") == "405"
