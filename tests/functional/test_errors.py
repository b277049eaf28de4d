"""What goes wrong for users: each a clear error with Docker's status, and an engine that goes on."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for


@pytest.fixture(autouse=True)
def unharmed(engine: Engine) -> Iterator[None]:
    """After every error the engine runs a container."""
    yield
    assert engine.docker("run", "--rm", "busybox", "echo", "fine").stdout == "fine\n"


def refused(engine: Engine, *arguments: str, status: int, says: str) -> None:
    done = engine.docker(*arguments, check=False)
    assert done.returncode == status, done.stderr
    assert says in done.stderr


def test_unknown_image(engine: Engine) -> None:
    refused(engine, "run", "--rm", "--pull", "never", "nosuch:1", "true", status=125, says="No such image: nosuch:1")
    status, body = engine.api("POST", "/containers/create", {"Image": "nosuch:1"})
    assert (status, body["message"]) == (404, "No such image: nosuch:1")
    refused(engine, "rmi", "nosuch:1", status=1, says="No such image: nosuch:1")


def test_unreachable_registry(engine: Engine) -> None:
    done = engine.docker("pull", "127.0.0.1:9/nosuch", check=False)
    assert done.returncode == 1
    assert "connection refused" in done.stderr.lower()


def test_image_names_that_cannot_be(engine: Engine) -> None:
    refused(engine, "run", "Upper/Case", status=125, says="must be lowercase")
    status, body = engine.api("POST", "/containers/create", {"Image": "a b"})
    assert (status, "invalid reference format" in body["message"]) == (400, True)


def test_used_port(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "holder", "-p", "8099:80", "busybox", "sleep", "100")
    try:
        refused(engine, "run", "--rm", "-p", "8099:80", "busybox", "true", status=125, says="port is already allocated")
        assert engine.docker("ps", "-aq").stdout.count("\n") == 1, "the refused container is gone"
    finally:
        engine.docker("rm", "-f", "holder")


def test_port_that_a_process_of_the_host_holds(engine: Engine) -> None:
    listener = engine.host.popen("socat", "TCP-LISTEN:8098,fork,reuseaddr", "PIPE")
    try:
        wait_for(lambda: engine.host.run("socat", "-u", "/dev/null", "TCP:127.0.0.1:8098").returncode == 0, "socat")
        refused(engine, "run", "--rm", "-p", "8098:80", "busybox", "true", status=125, says="address already in use")
    finally:
        for pid in engine.host.pids_of("TCP-LISTEN:8098"):
            engine.host.run("kill", engine.host.inner_pid(pid))
        listener.wait(10)


def test_bad_flags_of_run(engine: Engine) -> None:
    refused(engine, "run", "--rm", "-m", "1m", "busybox", "true", status=125, says="Minimum memory limit")
    refused(engine, "run", "--rm", "-v", "relative:path:bad:x", "busybox", "true", status=125, says="invalid")
    refused(engine, "run", "--rm", "--cap-add", "NOSUCH", "busybox", "true", status=125, says="NOSUCH")
    refused(engine, "run", "--rm", "-u", "nobodyhere", "busybox", "true", status=125, says="nobodyhere")
    refused(engine, "run", "--rm", "--runtime", "nosuch", "busybox", "true", status=125, says="nosuch")
    refused(engine, "run", "--rm", "--ipc", "container:nosuch", "busybox", "true", status=125, says="nosuch")
    assert engine.docker("ps", "-aq").stdout == ""


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/nosuch", None, 404, "page not found"),
        ("GET", "/v1.99/_ping", None, 400, "client version 1.99 is too new"),
        ("GET", "/v1.10/info", None, 400, "client version 1.10 is too old"),
        ("GET", "/containers/nosuch/json", None, 404, "No such container: nosuch"),
        ("POST", "/containers/nosuch/start", None, 404, "No such container: nosuch"),
        ("POST", "/containers/create", {"Image": 5}, 400, "Image"),
        ("POST", "/containers/create?name=a/b", {"Image": "busybox"}, 400, "Invalid container name (a/b)"),
        ("GET", "/containers/json?filters=nonsense", None, 400, "invalid"),
        ("GET", "/exec/nosuch/json", None, 404, "No such exec instance"),
        ("GET", "/networks/nosuch", None, 404, "network nosuch not found"),
        ("GET", "/volumes/nosuch", None, 404, "nosuch"),
        ("GET", "/swarm", None, 503, "This node is not a swarm manager"),
    ],
)
def test_status_and_message(engine: Engine, method: str, path: str, body: object, status: int, says: str) -> None:
    answered, answer = engine.api(method, path, body)
    assert (answered, says in answer["message"]) == (status, True), answer


def test_malformed_json(engine: Engine) -> None:
    command = ["curl", "-s", "-X", "POST", "--unix-socket", engine.socket, "-w", "\n%{http_code}"]
    command += ["-H", "Content-Type: application/json", "-d", "{broken", "http://engine/containers/create"]
    text, _, status = engine.host.check(*command).rpartition("\n")
    assert (status, "message" in json.loads(text)) == ("400", True)


@pytest.mark.parametrize("damage", ["not a tar", "cut", "empty"])
def test_corrupt_archive(engine: Engine, damage: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    engine.docker("save", "-o", str(whole), "busybox")
    data = {"not a tar": b"nonsense" * 1000, "cut": whole.read_bytes()[: whole.stat().st_size // 2], "empty": b""}
    listing = ("images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}")
    before = engine.docker(*listing).stdout
    done = engine.docker("load", stdin=data[damage], check=False)
    assert done.returncode == 1
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert engine.docker(*listing).stdout == before


def test_full_disk(make_engine: Callable[..., Engine], busybox_tar: bytes) -> None:
    """A data root of a few megabytes: what does not fit is refused, what is there goes on."""
    with PrivateHost(disk_size="24m") as host:
        small = Engine(host)
        small.start()
        try:
            small.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
            big = small.docker("import", "-", "big:latest", stdin=_tar_of(40 << 20), check=False)
            assert big.returncode == 1
            assert "no space left" in (big.stderr + big.stdout).lower()
            assert "big" not in small.docker("images").stdout
            assert small.docker("run", "--rm", "busybox", "echo", "still here").stdout == "still here\n"
            filled = small.docker("run", "--rm", "busybox", "dd", "if=/dev/zero", "of=/fill", "bs=1M", check=False)
            # What it said about it was lost: there was no room for its log either. Its status was not.
            assert filled.returncode == 1
            # What is said once there is room again is not lost, and room there is: the one before took its data along.
            script = "said=$(dd if=/dev/zero of=/fill bs=1M 2>&1); status=$?; rm /fill; echo $said; exit $status"
            filled = small.docker("run", "--rm", "busybox", "sh", "-c", script, check=False)
            assert filled.returncode == 1
            assert "No space left on device" in filled.stdout
            assert small.docker("ps", "-aq").stdout == ""
            assert small.docker("run", "--rm", "busybox", "echo", "still here").stdout == "still here\n"
        finally:
            small.down()


def _tar_of(size: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("big")
        entry.size = size
        tar.addfile(entry, io.BytesIO(random.Random(1).randbytes(size)))
    return out.getvalue()


def test_dockerfile_that_is_not_there(engine: Engine, tmp_path: Path) -> None:
    refused(engine, "build", "-f", str(tmp_path / "nosuch"), str(tmp_path), status=1, says="nosuch")
    context = engine.host.base / "context.tar"
    with tarfile.open(context, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    command = ["curl", "-s", "-X", "POST", "--unix-socket", engine.socket, "-w", "\n%{http_code}", "-T", str(context)]
    text, _, status = engine.host.check(*command, "http://engine/build?dockerfile=no/such").rpartition("\n")
    assert int(status) >= 400
    assert "Cannot locate specified Dockerfile: no/such" in json.loads(text)["message"]
