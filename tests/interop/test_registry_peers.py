"""docker.io, podman, buildah and skopeo on the other side of a registry: digests equal, files equal, images run."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.peers import Dockerd
from tests.integration.diff.conftest import Seen, tree
from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for
from tests.support.registries import Site, site

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""``security.capability``: revision 2, effective, cap_net_bind_service."""


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def registries(engine: Engine) -> Iterator[Site]:
    with site(engine.host) as made:
        yield made


@pytest.fixture(scope="module")
def dockerd(registries: Site) -> Iterator[Dockerd]:
    """Debian's engine in a host of its own, where the same registries are."""
    with PrivateHost() as host:
        peer = Dockerd(host)
        with site(host, registries.base / "storage", registries.authority):
            yield peer
            peer.stop()


def digest_of(text: str) -> str:
    found = DIGEST.search(text.lower().rpartition("digest: ")[2])
    assert found, text
    return found[0]


def ran(peer: Engine | Dockerd, name: str, *command: str) -> str:
    return str(peer.docker("run", "--rm", "--network", "none", name, *command).stdout)


def test_docker_runs_what_we_pushed(engine: Engine, registries: Site, dockerd: Dockerd) -> None:
    name = f"{registries.plain}/ours/app:v1"
    engine.docker("tag", "busybox", name)
    digest = digest_of(engine.docker("push", name).stdout)
    assert digest_of(dockerd.docker("pull", name).stdout) == digest
    assert ran(dockerd, name, "echo", "ran") == "ran\n"
    for peer in (engine, dockerd):
        shown = json.loads(peer.docker("image", "inspect", name).stdout)[0]
        assert shown["RepoDigests"] == [f"{registries.plain}/ours/app@{digest}"] or peer is engine
        assert shown["Config"]["Cmd"] == ["sh"]
    ids = {peer.docker("image", "inspect", "-f", "{{.Id}}", name).stdout for peer in (engine, dockerd)}
    assert len(ids) == 1


def test_we_run_what_docker_pushed(engine: Engine, registries: Site, dockerd: Dockerd, busybox_tar: bytes) -> None:
    name = f"{registries.plain}/theirs/app:v1"
    dockerd.docker("import", "-c", 'CMD ["echo","from docker"]', "-", name, stdin=busybox_tar)
    digest = digest_of(dockerd.docker("push", name).stdout)
    assert digest_of(engine.docker("pull", name).stdout) == digest
    assert ran(engine, name) == "from docker\n"
    again = f"{registries.plain}/back/app:v1"
    engine.docker("tag", name, again)
    assert digest_of(engine.docker("push", again).stdout) == digest
    assert registries.raw(again) == registries.raw(name)


def test_over_tls_with_docker(engine: Engine, registries: Site, dockerd: Dockerd) -> None:
    name = f"{registries.secure}/shared/app:v1"
    for peer in (engine, dockerd):
        peer.docker("login", "-u", "ali", "--password-stdin", registries.secure, stdin=b"sesame")
    engine.docker("tag", "busybox", name)
    digest = digest_of(engine.docker("push", name).stdout)
    assert digest_of(dockerd.docker("pull", name).stdout) == digest
    assert ran(dockerd, name, "echo", "ran") == "ran\n"


PODMAN = ("podman", "--root", "{}/podman", "--runroot", "{}/podman-run", "--storage-driver", "vfs", "--cgroup-manager",
          "cgroupfs")  # fmt: skip


def podman(host: PrivateHost, *arguments: str, stdin: bytes | None = None) -> str:
    command = [part.format(host.base) for part in PODMAN]
    return host.check(*command, *arguments, stdin=stdin, timeout=120)


def test_we_run_what_podman_pushed_and_it_pulls_ours(engine: Engine, registries: Site, busybox_tar: bytes) -> None:
    host = engine.host
    (host.base / "rootfs.tar").write_bytes(busybox_tar)
    name = f"{registries.plain}/podman/app:v1"
    change = 'CMD ["echo","from podman"]'
    podman(host, "import", "-c", change, str(host.base / "rootfs.tar"), name)
    podman(host, "push", "--tls-verify=false", "--digestfile", f"{host.base}/digest", name)
    digest = (host.base / "digest").read_text().strip()
    assert digest_of(engine.docker("pull", name).stdout) == digest
    assert ran(engine, name) == "from podman\n"
    ours = f"{registries.plain}/topodman/app:v1"
    engine.docker("tag", name, ours)
    assert digest_of(engine.docker("push", ours).stdout) == digest
    podman(host, "rmi", name)
    podman(host, "pull", "--tls-verify=false", ours)
    assert json.loads(podman(host, "image", "inspect", ours))[0]["Digest"] == digest


def test_we_run_what_buildah_pushed(engine: Engine, registries: Site, busybox_tar: bytes) -> None:
    host = engine.host
    name = f"{registries.plain}/buildah/app:v1"
    (host.base / "buildah.tar").write_bytes(busybox_tar)
    common = ("--root", f"{host.base}/buildah", "--runroot", f"{host.base}/buildah-run", "--storage-driver", "vfs")
    work = host.check("buildah", *common, "from", "scratch").strip()
    host.check("buildah", *common, "add", work, f"{host.base}/buildah.tar", "/")
    host.check("buildah", *common, "config", "--cmd", '["echo","from buildah"]', work)
    host.check("buildah", *common, "commit", work, name)
    host.check(
        "buildah", *common, "push", "--tls-verify=false", "--compression-format", "zstd", "--compression-level", "3",
        "--format", "oci", "--digestfile", f"{host.base}/bdigest", name,
    )  # fmt: skip
    digest = (host.base / "bdigest").read_text().strip()
    assert b"tar+zstd" in registries.raw(name)
    assert digest_of(engine.docker("pull", name).stdout) == digest
    assert ran(engine, name) == "from buildah\n"


# Files


def member(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", **more: object) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, len(data), 1_600_000_000
    for key, value in more.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(data) if data else None)


def curious_rootfs(busybox_tar: bytes) -> bytes:
    """Busybox, and below ``/data`` one of everything that a file system can hold and images must keep."""
    out = io.BytesIO(busybox_tar)
    nanos = {"mtime": "1600000001.123456789"}
    with tarfile.open(fileobj=out, mode="a", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in (("data", 0o755), ("data/sticky", 0o1777), ("data/setgid", 0o2750), ("data/hidden", 0o700)):
            member(tar, name, tarfile.DIRTYPE, mode, uid=12, gid=34)
        member(tar, "data/hidden/old", tarfile.REGTYPE, 0o644, b"old")
        member(tar, "data/setuid", tarfile.REGTYPE, 0o4755, b"setuid", uid=1234, gid=5678)
        member(tar, "data/nanos", tarfile.REGTYPE, 0o600, b"nanos", pax_headers=nanos)
        xattrs = {"SCHILY.xattr.user.kept": "yes", "SCHILY.xattr.security.capability": CAPABILITY.decode()}
        member(tar, "data/capable", tarfile.REGTYPE, 0o755, b"capable", pax_headers=xattrs)
        member(tar, "data/hard", tarfile.LNKTYPE, 0o755, linkname="data/capable", pax_headers=xattrs)
        member(tar, "data/soft", tarfile.SYMTYPE, 0o777, linkname="../../no/where", uid=7, gid=8)
        member(tar, "data/null", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3)
        member(tar, "data/disk", tarfile.BLKTYPE, 0o660, devmajor=7, devminor=200, gid=6)
        member(tar, "data/pipe", tarfile.FIFOTYPE, 0o622)
        member(tar, "data/" + "n" * 150 + "ü", tarfile.REGTYPE, 0o644, b"long")
        member(tar, "data/big-owner", tarfile.REGTYPE, 0o644, b"x", uid=3_000_000, gid=4_000_000_000)
        member(tar, "data/removed", tarfile.REGTYPE, 0o644, b"soon gone")
        member(tar, "data/replaced", tarfile.REGTYPE, 0o644, b"soon a directory")
    return out.getvalue()


CHANGES = """
rm /data/removed /data/replaced; mkdir /data/replaced; echo new > /data/replaced/file
rm -r /data/hidden; mkdir -m 0711 /data/hidden; echo fresh > /data/hidden/fresh
chmod 02555 /data/setuid; chown 99:98 /data/nanos; ln /data/pipe /data/pipe2
ln -s x /data/soft2; ln /data/capable /data/hard2; mknod -m 0640 /data/zero c 1 5
touch -d '2001-02-03 04:05:06' /data/sticky
mkdir -p /data/a/b/c; echo deep > /data/a/b/c/d; ln /data/a/b/c/d /data/a/link
"""


def files_of(peer: Engine | Dockerd, name: str) -> dict[str, Seen]:
    """Everything below ``/data`` of a container of the image, seen from outside."""
    container = peer.docker("run", "-d", "--network", "none", name, "sleep", "1000").stdout.strip()
    try:
        inner = peer.docker("inspect", "-f", "{{.State.Pid}}", container).stdout.strip()
        assert inner != "0", peer.docker("logs", container)
        (pid,) = (p for p in peer.host.processes() if peer.host.inner_pid(p) == inner)
        root = Path(f"/proc/{pid}/root") / "data"
        wait_for(lambda: os.path.isdir(root), "the container's files")
        return tree(root)
    finally:
        peer.docker("rm", "-f", container)


def test_files_keep_everything_on_the_long_way(
    engine: Engine, registries: Site, dockerd: Dockerd, busybox_tar: bytes
) -> None:
    engine.docker("import", "-c", 'CMD ["sh"]', "-", "curious", stdin=curious_rootfs(busybox_tar))
    first = files_of(engine, "curious")
    assert first["nanos"].mtime == 1_600_000_001_123_456_789
    assert dict(first["capable"].xattrs)["security.capability"] == CAPABILITY
    assert first["capable"].links == ("capable", "hard")
    engine.docker("run", "--name", "changing", "--network", "none", "curious", "sh", "-ec", CHANGES)
    name = f"{registries.plain}/curious/app:v1"
    engine.docker("commit", "changing", name)
    engine.docker("rm", "changing")
    committed = files_of(engine, name)
    assert "removed" not in committed
    assert set(committed) >= {"hidden/fresh", "replaced/file", "a/link"}
    assert "hidden/old" not in committed
    digest = digest_of(engine.docker("push", name).stdout)
    engine.docker("rmi", "-f", name)
    engine.docker("rmi", "-f", "curious")
    assert digest_of(engine.docker("pull", name).stdout) == digest
    pulled = files_of(engine, name)
    assert {k: v for k, v in pulled.items() if v != committed.get(k)} == {}
    assert digest_of(dockerd.docker("pull", name).stdout) == digest
    theirs = files_of(dockerd, name)
    assert {k: (v, theirs.get(k)) for k, v in pulled.items() if v != theirs.get(k)} == {}
    assert set(theirs) == set(pulled)
