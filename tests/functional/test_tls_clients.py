"""The engine over TCP with client certificates: who gets in, who does not, and that no byte is lost on the way."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.engine import DOCKER, Engine
from tests.support.host import PrivateHost, wait_for

ADDRESS = "127.0.0.1:2376"


class TlsEngine:
    """An engine that listens on its unix socket and, with TLS, on TCP; ``certs`` is what ``gantry certs init`` made."""

    def __init__(self, host: PrivateHost, certs: Path, other: Authority) -> None:
        self.host, self.certs, self.other = host, certs, other
        host.check(sys.executable, "-m", "cli.main", "certs", "init", "--dir", str(certs), "--host", "127.0.0.1")
        # A second authority is trusted too: its certificates can be made to have run out.
        authorities = certs / "clients.pem"
        authorities.write_bytes((certs / "ca.pem").read_bytes() + other.ca.read_bytes())
        self.engine = Engine(
            host, "-H", f"unix://{host.exec_root}/gantry.sock", "-H", f"tcp://{ADDRESS}", "--tlsverify",
            "--tlscacert", str(authorities), "--tlscert", f"{certs}/server-cert.pem",
            "--tlskey", f"{certs}/server-key.pem",
        )  # fmt: skip
        self.engine.start()

    def client(self, certificate: Path | None, key: Path | None, ca: Path | None = None) -> tuple[str, ...]:
        """The docker command line of a client."""
        command = [DOCKER, "-H", f"tcp://{ADDRESS}", "--tlsverify", "--tlscacert", str(ca or self.certs / "ca.pem")]
        command += ["--tlscert", str(certificate or ""), "--tlskey", str(key or "")]
        return tuple(command)

    @property
    def good(self) -> tuple[str, ...]:
        return self.client(self.certs / "cert.pem", self.certs / "key.pem")


@pytest.fixture(scope="module")
def tls(busybox_tar: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsEngine]:
    with PrivateHost() as host:
        tls = TlsEngine(host, tmp_path_factory.mktemp("certs"), Authority(tmp_path_factory.mktemp("other")))
        host.check(*tls.good, "import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
        yield tls
        tls.engine.down()
        assert host.leftovers() == {}


def test_a_line_through_a_container(tls: TlsEngine) -> None:
    assert tls.host.check(*tls.good, "run", "-i", "--rm", "busybox", "cat", stdin=b"x\n") == "x\n"


def test_100_megabytes_there_and_back(tls: TlsEngine, tmp_path: Path) -> None:
    data = tmp_path / "data"
    script = f"""
        head -c 100M /dev/urandom > {data}
        {" ".join(tls.good)} run -i --rm --network none busybox cat < {data} | cmp - {data} && echo same"""
    assert tls.host.check("bash", "-euo", "pipefail", "-c", script, timeout=300) == "same\n"


def test_who_does_not_get_in(tls: TlsEngine, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    assert tls.host.run(*tls.client(*tls.other.client("alice")), "version").returncode == 0
    for who, command in {
        "a wrong authority": tls.client(*stranger.client("mallory")),
        "run out": tls.client(*tls.other.client("bob", expired=True)),
        "a server the client does not trust": tls.client(tls.certs / "cert.pem", tls.certs / "key.pem", stranger.ca),
    }.items():
        done = tls.host.run(*command, "version", "--format", "{{.Server.Version}}")
        assert done.returncode != 0, who
        assert done.stdout.strip() in ("", "<no value>"), who
    nothing = ("curl", "-s", "-S", "--cacert", str(tls.certs / "ca.pem"), f"https://{ADDRESS}/_ping")
    assert tls.host.run(*nothing).returncode != 0, "no certificate"
    assert "OK" not in tls.host.run("curl", "-s", f"http://{ADDRESS}/_ping").stdout, "no TLS"


def test_plain_tcp_beyond_this_machine_is_refused(tls: TlsEngine, tmp_path: Path) -> None:
    roots = ("--data-root", str(tmp_path / "lib"), "--exec-root", str(tmp_path / "run"))
    done = tls.host.run(sys.executable, "-m", "engine.main", *roots, "-H", "tcp://0.0.0.0:2375")
    assert done.returncode == 1
    assert "without TLS" in done.stderr


def agent_archive() -> bytes:
    """What the plugin puts into the container: the agent, here a shell script that echoes."""
    out = io.BytesIO()
    script = b"exec cat\n"
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("agent.jar")
        entry.size, entry.mode = len(script), 0o644
        tar.addfile(entry, io.BytesIO(script))
    return out.getvalue()


AGENT_SECONDS = int(os.environ.get("GANTRY_AGENT_SECONDS", "8"))
"""How long the agent's channel is used."""


@pytest.mark.timeout(120 + 2 * AGENT_SECONDS)
def test_a_jenkins_agent(tls: TlsEngine) -> None:
    ca, cert, key = (str(tls.certs / name) for name in ("ca.pem", "cert.pem", "key.pem"))

    def api(method: str, path: str, body: object = None, data: bytes | None = None) -> dict[str, str]:
        command = ["curl", "-sS", "--fail-with-body", "--cacert", ca, "--cert", cert, "--key", key, "-X", method]
        payload = data if data is not None else json.dumps(body).encode() if body is not None else None
        kind = "application/x-tar" if data is not None else "application/json"
        command += ["-H", f"Content-Type: {kind}", "--data-binary", "@-"] if payload is not None else []
        text = tls.host.check(*command, f"https://{ADDRESS}/v1.41{path}", stdin=payload)
        answer: dict[str, str] = json.loads(text) if text.strip() else {}
        return answer

    labels = {"JenkinsId": "one", "com.nirima.jenkins.plugins.docker.TemplateName": "t"}
    config = {"Image": "busybox", "Cmd": ["/bin/sh"], "Tty": True, "OpenStdin": True, "Labels": labels}
    agent = api("POST", "/containers/create?name=agent", config)["Id"]
    api("PUT", f"/containers/{agent}/archive?path=/&noOverwriteDirNonDir=false", data=agent_archive())
    api("POST", f"/containers/{agent}/start")
    assert api("GET", f"/containers/{agent}/json")["State"]["Running"]  # type: ignore[index]  # an object of objects
    streams = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": False}
    process = api("POST", f"/containers/{agent}/exec", {**streams, "Cmd": ["sh", "/agent.jar"]})["Id"]
    channel = (
        sys.executable,
        "-m",
        "tests.support.jenkins_channel",
        ADDRESS,
        ca,
        cert,
        key,
        process,
        str(AGENT_SECONDS),
    )
    assert int(tls.host.check(*channel, timeout=60.0 + 2 * AGENT_SECONDS)) > 300_000
    found = tls.host.check(*tls.good, "ps", "-q", "--no-trunc", "--filter", "label=JenkinsId=one")
    assert found.split() == [agent]
    # docker-workflow finds its own container by this.
    shown = tls.host.check(*tls.good, "exec", agent, "cat", "/proc/self/mountinfo")
    assert f"/containers/{agent}/hostname" in shown
    api("POST", f"/containers/{agent}/stop?t=0")
    api("DELETE", f"/containers/{agent}?v=true&force=true")


def test_docker_reaches_the_engine_through_a_pipe(tls: TlsEngine) -> None:
    """What ``ssh://`` is made of: a program on the other side whose standard streams are the connection."""
    request = b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n"
    command = (sys.executable, "-m", "cli.main", "-H", tls.engine.url, "system", "dial-stdio")
    assert tls.host.check(*command, stdin=request).endswith("OK")


ACTIVATE = """
import os, socket, sys
path, *command = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
listening.bind(path + ".new")
listening.listen()
os.rename(path + ".new", path)
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, *command])
"""
"""What a service manager does for a socket unit."""


def test_a_socket_from_the_service_manager() -> None:
    """``fd://``: the socket exists before the engine and stays after it."""
    with PrivateHost() as host:
        path = host.exec_root / "activated.sock"
        roots = ("--data-root", str(host.data_root), "--exec-root", str(host.exec_root))
        daemon = host.popen(sys.executable, "-c", ACTIVATE, str(path), "-m", "engine.main", *roots, "-H", "fd://")
        wait_for(path.exists, "the socket")
        # The kernel takes the connection, the engine answers once it is up.
        assert host.check("curl", "-s", "--unix-socket", str(path), "http://engine/_ping") == "OK"
        host.check(sys.executable, "-m", "cli.main", "-H", f"unix://{path}", "down")
        daemon.wait(30)
        assert path.exists(), "it belongs to who made it"
        path.unlink()
        assert host.leftovers() == {}
