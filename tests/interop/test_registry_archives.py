"""Archives go both ways: what docker.io, podman, buildah and skopeo save we load and run, and they take ours."""

from __future__ import annotations

import json
import lzma
import subprocess
from collections.abc import Callable, Iterator

import pytest
import zstandard

from tests.bench.peers import Dockerd
from tests.interop.test_registry_peers import podman, ran
from tests.support.engine import Engine
from tests.support.host import PrivateHost


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def dockerd(busybox_tar: bytes) -> Iterator[Dockerd]:
    with PrivateHost() as host:
        peer = Dockerd(host)
        peer.docker("import", "-c", 'CMD ["echo","from docker"]', "-", "docker.test/app:v1", stdin=busybox_tar)
        yield peer
        peer.stop()


@pytest.fixture(scope="module")
def podman_host(engine: Engine, busybox_tar: bytes) -> PrivateHost:
    (engine.host.base / "rootfs.tar").write_bytes(busybox_tar)
    change = 'CMD ["echo","from podman"]'
    podman(engine.host, "import", "-c", change, f"{engine.host.base}/rootfs.tar", "podman.test/app:v1")
    return engine.host


def saved(peer: Engine | Dockerd, *names: str) -> bytes:
    path = peer.host.base / "saved.tar"
    peer.docker("save", "-o", str(path), *names)
    return path.read_bytes()


def identity(peer: Engine | Dockerd, name: str) -> str:
    return str(peer.docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip())


def load(engine: Engine, data: bytes) -> str:
    return engine.docker("load", stdin=data, timeout=120).stdout


def test_what_docker_saved(engine: Engine, dockerd: Dockerd) -> None:
    data = saved(dockerd, "docker.test/app:v1")
    for wrapped in (data, lzma.compress(data, preset=0), zstandard.ZstdCompressor().compress(data)):
        assert load(engine, wrapped).strip() == "Loaded image: docker.test/app:v1"
        assert identity(engine, "docker.test/app:v1") == identity(dockerd, "docker.test/app:v1")
        assert ran(engine, "docker.test/app:v1") == "from docker\n"
        engine.docker("rmi", "docker.test/app:v1")


def test_an_image_without_a_name_stays(engine: Engine, dockerd: Dockerd) -> None:
    image = identity(dockerd, "docker.test/app:v1")
    assert load(engine, saved(dockerd, image)).strip() == f"Loaded image ID: {image}"
    engine.docker("image", "ls")
    assert image in engine.docker("image", "ls", "-a", "--no-trunc", "-q").stdout
    assert ran(engine, image) == "from docker\n"
    engine.docker("rmi", image)


def test_docker_loads_what_we_saved(engine: Engine, dockerd: Dockerd) -> None:
    engine.docker("tag", "busybox", "ours.test/one:v1")
    engine.docker("tag", "busybox", "ours.test/two:v2")
    data = saved(engine, "ours.test/one:v1", "ours.test/two:v2")
    out = dockerd.docker("load", stdin=data).stdout
    assert "ours.test/one:v1" in out
    assert "ours.test/two:v2" in out
    assert identity(dockerd, "ours.test/one:v1") == identity(engine, "busybox")
    assert ran(dockerd, "ours.test/two:v2", "echo", "ran") == "ran\n"


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman(engine: Engine, podman_host: PrivateHost, form: str) -> None:
    path = podman_host.base / f"{form}.tar"
    podman(podman_host, "save", "--format", form, "-o", str(path), "podman.test/app:v1")
    assert load(engine, path.read_bytes()).strip() == "Loaded image: podman.test/app:v1"
    assert ran(engine, "podman.test/app:v1") == "from podman\n"
    image = json.loads(podman(podman_host, "image", "inspect", "podman.test/app:v1"))[0]["Id"]
    if form == "oci-archive":
        assert identity(engine, "podman.test/app:v1") == f"sha256:{image}"
    engine.docker("rmi", "podman.test/app:v1")
    engine.docker("tag", "busybox", "ours.test/podman:v1")
    (podman_host.base / "ours.tar").write_bytes(saved(engine, "ours.test/podman:v1"))
    podman(podman_host, "load", "-i", f"{podman_host.base}/ours.tar")
    loaded = json.loads(podman(podman_host, "image", "inspect", "ours.test/podman:v1"))[0]["Id"]
    assert f"sha256:{loaded}" == identity(engine, "busybox")


def test_buildah_and_skopeo(engine: Engine, podman_host: PrivateHost) -> None:
    host, base = podman_host, podman_host.base
    common = ("--root", f"{base}/buildah", "--runroot", f"{base}/buildah-run", "--storage-driver", "vfs")
    work = host.check("buildah", *common, "from", "scratch").strip()
    host.check("buildah", *common, "add", work, f"{base}/rootfs.tar", "/")
    host.check("buildah", *common, "config", "--cmd", '["echo","from buildah"]', work)
    host.check("buildah", *common, "commit", work, "buildah.test/app:v1")
    for form in ("docker-archive", "oci-archive"):
        path = base / f"buildah-{form}.tar"
        host.check("buildah", *common, "push", "buildah.test/app:v1", f"{form}:{path}:buildah.test/app:v1")
        assert load(engine, path.read_bytes()).strip() == "Loaded image: buildah.test/app:v1"
        assert ran(engine, "buildah.test/app:v1") == "from buildah\n"
        copied = base / f"skopeo-{form}.tar"
        host.check("skopeo", "copy", f"{form}:{path}", f"oci-archive:{copied}:skopeo.test/app:v2")
        assert load(engine, copied.read_bytes()).strip() == "Loaded image: skopeo.test/app:v2"
        assert ran(engine, "skopeo.test/app:v2") == "from buildah\n"
        engine.docker("rmi", "buildah.test/app:v1", "skopeo.test/app:v2")


def test_a_cut_archive_leaves_nothing(engine: Engine, dockerd: Dockerd) -> None:
    before = engine.docker("image", "ls", "-aq").stdout
    data = saved(dockerd, "docker.test/app:v1")
    done = engine.docker("load", stdin=data[: len(data) // 2], check=False)
    assert done.returncode != 0
    assert "cut short" in done.stderr
    assert engine.docker("image", "ls", "-aq").stdout == before


def test_load_that_the_client_leaves_is_given_up(engine: Engine, dockerd: Dockerd) -> None:
    client = engine.popen("load", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert client.stdin is not None
    client.stdin.write(saved(dockerd, "docker.test/app:v1")[:100_000])
    client.stdin.flush()
    client.kill()
    client.wait()
    assert engine.docker("version").returncode == 0
