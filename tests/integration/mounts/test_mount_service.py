"""The mount manager over the wire: what it mounts, gives back, remembers and collects."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd import (
    containers_pb2,
    leases_pb2,
    leases_pb2_grpc,
    mounts_pb2,
    mounts_pb2_grpc,
    tasks_pb2,
    types_pb2,
)
from tests.integration.tasks.supervisor import (
    CALL_SECONDS,
    METADATA,
    OWN_RUNTIME,
    SPEC_TYPE,
    Supervisor,
    spec,
    supervisor,
)
from tests.support.host import wait_for

HELD = {"containerd.io/gc.root": "yes"}

pytestmark = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4 (apt: e2fsprogs)")


@pytest.fixture(scope="module")
def daemon(busybox_tar: bytes) -> Iterator[Supervisor]:
    with supervisor(busybox_tar) as made:
        yield made


def call(daemon: Supervisor, method: str, lease: str = "", **fields: Any) -> Any:
    assert daemon.channel is not None
    request = getattr(mounts_pb2, f"{method}Request")(**fields)
    metadata = (*METADATA, *((("containerd-lease", lease),) if lease else ()))
    answer = getattr(mounts_pb2_grpc.MountsStub(daemon.channel), method)(
        request, metadata=metadata, timeout=CALL_SECONDS
    )
    return [message.info for message in answer] if method == "List" else answer


def mount(kind: str, source: str, *options: str) -> types_pb2.Mount:
    return types_pb2.Mount(type=kind, source=source, options=options)


def mounted(daemon: Supervisor) -> list[str]:
    """Mount points below the manager's directory, as the daemon sees them."""
    lines = Path(f"/proc/{daemon.daemon_pid()}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if "mount-manager" in line.split()[4]]


def inside(daemon: Supervisor, path: str) -> Path:
    """``path`` in the daemon's mount namespace."""
    return Path(f"/proc/{daemon.daemon_pid()}/root{path}")


def code(daemon: Supervisor, method: str, **fields: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call(daemon, method, **fields)
    found: grpc.StatusCode = refused.value.code()
    return found


def writable(daemon: Supervisor, image: str, owner: str = "") -> list[types_pb2.Mount]:
    """What containerd's documentation makes of a disk image: a file system in it, and an overlay on that."""
    return [
        mount("mkfs/loop", image, "X-containerd.mkfs.size=16MiB", "X-containerd.mkfs.fs=ext4"),
        mount("format/ext4", "{{ mount 0 }}"),
        mount(
            "format/mkdir/overlay",
            "overlay",
            f"X-containerd.mkdir.path={{{{ mount 1 }}}}/upper:0755{owner}",
            "X-containerd.mkdir.path={{ mount 1 }}/work",
            f"lowerdir={daemon.lower}",
            "upperdir={{ mount 1 }}/upper",
            "workdir={{ mount 1 }}/work",
        ),
    ]


def loops(image: Path) -> list[str]:
    """Loop devices of the file."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found += [backing.parts[3]] if backing.read_text().strip() == str(image) else []
    return found


def test_an_image_a_file_system_and_an_overlay_left_to_the_client(daemon: Supervisor) -> None:
    image = daemon.root / "disk.img"
    info = call(daemon, "Activate", name="disk", mounts=writable(daemon, str(image), ":7:8"), labels=HELD).info
    loop, ext4 = info.active
    (overlay,) = info.system
    assert (info.name, dict(info.labels)) == ("disk", HELD)
    assert image.stat().st_size == 16 << 20 and image.stat().st_blocks * 512 < 16 << 20, "a sparse file"
    (device,) = loops(image)
    assert inside(daemon, loop.mount_point).readlink() == Path(f"/dev/{device}")
    assert mounted(daemon) == [ext4.mount_point]
    upper = inside(daemon, f"{ext4.mount_point}/upper").stat()
    assert (upper.st_mode & 0o777, upper.st_uid, upper.st_gid) == (0o755, 7, 8)
    assert overlay.type == "overlay"
    assert list(overlay.options) == [
        f"lowerdir={daemon.lower}",
        f"upperdir={ext4.mount_point}/upper",
        f"workdir={ext4.mount_point}/work",
    ]
    assert call(daemon, "Info", name="disk").info == info
    assert code(daemon, "Activate", name="disk", mounts=writable(daemon, str(image))) == grpc.StatusCode.ALREADY_EXISTS

    daemon.kill()
    daemon.start()
    assert call(daemon, "Info", name="disk").info == info, "known after a restart, and still mounted"
    with (inside(daemon, ext4.mount_point) / "open").open("w"):
        assert code(daemon, "Deactivate", name="disk") == grpc.StatusCode.FAILED_PRECONDITION
        assert call(daemon, "Info", name="disk").info == info
    call(daemon, "Deactivate", name="disk")
    assert code(daemon, "Info", name="disk") == grpc.StatusCode.NOT_FOUND
    assert code(daemon, "Deactivate", name="disk") == grpc.StatusCode.NOT_FOUND
    assert mounted(daemon) == []
    wait_for(lambda: loops(image) == [], "the loop device is free")

    again = call(daemon, "Activate", name="disk", mounts=writable(daemon, str(image)), labels=HELD).info
    assert (inside(daemon, again.active[1].mount_point) / "open").exists(), "a file system is not made twice"
    call(daemon, "Deactivate", name="disk")


def test_temporary_mounts_are_all_made(daemon: Supervisor) -> None:
    layers = daemon.host.base / "temporary"
    for name in ("upper", "work"):
        (layers / name).mkdir(parents=True)
    options = (f"lowerdir={daemon.lower}", f"upperdir={layers}/upper", f"workdir={layers}/work")
    wanted = [mount("overlay", "overlay", *options)]
    assert code(daemon, "Activate", name="plain", mounts=wanted) == grpc.StatusCode.UNIMPLEMENTED
    info = call(daemon, "Activate", name="view", mounts=wanted, temporary=True, labels=HELD).info
    (bind,) = info.system
    assert (bind.type, bind.source, list(bind.options)) == ("bind", info.active[0].mount_point, ["rbind"])
    assert (inside(daemon, bind.source) / "bin").is_dir()
    call(daemon, "Deactivate", name="view")


def test_list_and_labels(daemon: Supervisor) -> None:
    wanted = [mount("tmpfs", "tmpfs", "size=64k", "nosuid")]
    for name in ("one", "two"):
        call(daemon, "Activate", name=name, mounts=wanted, temporary=True, labels={**HELD, "name": name})
    assert [info.name for info in call(daemon, "List")] == ["one", "two"]
    assert [info.name for info in call(daemon, "List", filters=["labels.name==two"])] == ["two"]
    assert [info.name for info in call(daemon, "List", filters=["name==one"])] == ["one"]
    changed = types_pb2.ActivationInfo(name="one", labels={"name": "uno", "other": "x"})
    mask = {"paths": ["labels.name"]}
    info = call(daemon, "Update", info=changed, update_mask=mask).info
    assert dict(info.labels) == {**HELD, "name": "uno"}
    assert code(daemon, "Update", info=changed, update_mask={"paths": ["active"]}) == grpc.StatusCode.INVALID_ARGUMENT
    for name in ("one", "two"):
        call(daemon, "Deactivate", name=name)
    assert call(daemon, "List") == []


def test_what_fails_leaves_nothing(daemon: Supervisor) -> None:
    image = str(daemon.root / "broken.img")
    steps = writable(daemon, image)
    bad = mount("format/ext4", "{{ mount 0 }}", "no-such-option")
    assert code(daemon, "Activate", name="bad", mounts=[steps[0], bad, steps[2]]) == grpc.StatusCode.INVALID_ARGUMENT
    outside = mount("mkfs/loop", "/srv/disk.img", "X-containerd.mkfs.size=16MiB")
    assert code(daemon, "Activate", name="bad", mounts=[outside]) == grpc.StatusCode.PERMISSION_DENIED
    (daemon.root / "link").symlink_to(daemon.host.base)
    linked = mount("mkdir/bind", "x", f"X-containerd.mkdir.path={daemon.root}/link/made")
    assert code(daemon, "Activate", name="bad", mounts=[linked]) == grpc.StatusCode.INVALID_ARGUMENT
    assert not (daemon.host.base / "made").exists(), "no link is followed"
    (daemon.root / "link").unlink()
    assert code(daemon, "Activate", name="", mounts=[steps[0]]) == grpc.StatusCode.INVALID_ARGUMENT
    assert (mounted(daemon), call(daemon, "List"), loops(Path(image))) == ([], [], [])


def test_nobody_refers_to_it_and_it_goes(daemon: Supervisor) -> None:
    """Held by a lease, by a live container, or by nobody."""
    assert daemon.channel is not None
    leases = leases_pb2_grpc.LeasesStub(daemon.channel)
    lease = leases.Create(leases_pb2.CreateRequest(id="mounts"), metadata=METADATA).lease.id
    container = containers_pb2.Container(id="holder")
    container.runtime.name = "none"
    container.spec.type_url = SPEC_TYPE
    container.spec.value = b"{}"
    daemon.containers.Create(containers_pb2.CreateContainerRequest(container=container), metadata=METADATA)
    wanted = [mount("tmpfs", "tmpfs", "size=64k")]
    call(daemon, "Activate", lease=lease, name="leased", mounts=wanted, temporary=True)
    bound = {"containerd.io/gc.bref.container.a": "holder"}
    call(daemon, "Activate", name="bound", mounts=wanted, temporary=True, labels=bound)

    def collect() -> list[str]:
        other = leases.Create(leases_pb2.CreateRequest(), metadata=METADATA).lease.id
        leases.Delete(leases_pb2.DeleteRequest(id=other, sync=True), metadata=METADATA)
        return [info.name for info in call(daemon, "List")]

    call(daemon, "Activate", name="nobodys", mounts=wanted, temporary=True)
    assert collect() == ["bound", "leased"]
    assert len(mounted(daemon)) == 2
    leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=True), metadata=METADATA)
    assert collect() == ["bound"]
    daemon.containers.Delete(containers_pb2.DeleteContainerRequest(id="holder"), metadata=METADATA)
    assert collect() == []
    assert mounted(daemon) == []


def test_a_start_undoes_what_a_kill_left_half_made(daemon: Supervisor) -> None:
    call(daemon, "Activate", name="lost", mounts=[mount("tmpfs", "t", "size=64k")], temporary=True, labels=HELD)
    (point,) = mounted(daemon)
    daemon.host.check("umount", point)
    half = Path(point).parent.parent / "4711"
    daemon.kill()
    (half / "000").mkdir(parents=True)
    daemon.host.check("mount", "-t", "tmpfs", "tmpfs", str(half / "000"))
    daemon.start()
    assert call(daemon, "List") == [], "what is not mounted any more is forgotten"
    assert (mounted(daemon), half.exists()) == ([], False)


def test_a_task_gets_what_its_rootfs_needs(daemon: Supervisor) -> None:
    """An overlay on a disk image: made by Create, with the task's name, and taken back by Delete."""
    image = daemon.root / "task.img"
    container = containers_pb2.Container(id="onimage")
    container.runtime.name = OWN_RUNTIME
    container.spec.type_url = SPEC_TYPE
    container.spec.value = json.dumps(spec(["sh", "-c", "echo written >/file; sleep 1000"])).encode()
    daemon.containers.Create(containers_pb2.CreateContainerRequest(container=container), metadata=METADATA)

    def create() -> None:
        request = tasks_pb2.CreateTaskRequest(container_id="onimage", rootfs=writable(daemon, str(image)))
        daemon.tasks.Create(request, metadata=METADATA, timeout=CALL_SECONDS)

    create()
    assert [info.name for info in call(daemon, "List")] == ["onimage"]
    daemon.start_task("onimage")
    (point,) = mounted(daemon)
    wait_for((inside(daemon, point) / "upper/file").exists, "the program's file, on the image")
    daemon.signal("onimage", 9)
    daemon.wait("onimage")
    assert daemon.delete_task("onimage") == 137
    assert (mounted(daemon), call(daemon, "List")) == ([], [])
    wait_for(lambda: loops(image) == [], "the loop device is free")

    bad = mount("format/overlay", "overlay", "lowerdir={{ mount 7 }}")
    with pytest.raises(grpc.RpcError, match="mounts before"):
        request = tasks_pb2.CreateTaskRequest(container_id="onimage", rootfs=[bad])
        daemon.tasks.Create(request, metadata=METADATA, timeout=CALL_SECONDS)
    create()
    daemon.delete("onimage")
    assert (mounted(daemon), call(daemon, "List")) == ([], [])
