"""Which mount a path is on, and what it shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.containers.model import MountPoint
from engine.spec import propagation
from oci.errors import Internal

MOUNTINFO = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:30 / /srv rw master:7 - tmpfs tmpfs rw
31 30 0:31 / /srv/a\\040b rw shared:9 master:7 - tmpfs tmpfs rw
32 21 0:32 / /srv/d rw - tmpfs tmpfs rw
33 32 0:33 / /srv/d rw unbindable - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "point", "shared", "slave"),
    [
        ("/", "/", True, False),
        ("/srvx", "/", True, False),
        ("/srv/x", "/srv", False, True),
        ("/srv/a b/c", "/srv/a b", True, True),
        ("/srv/d", "/srv/d", False, False),
    ],
)
def test_the_mount_of_a_path(path: str, point: str, shared: bool, slave: bool) -> None:
    mount = propagation.mount_of(path, propagation.parse(MOUNTINFO)[::-1])
    assert (mount.point, mount.is_in("shared"), mount.is_in("master")) == (point, shared, slave)
    assert not mount.is_in("unbindable") or point == "/srv/d"


def test_the_last_one_at_a_place_counts() -> None:
    assert propagation.mount_of("/srv/d/x", propagation.parse(MOUNTINFO)[::-1]).groups == ("unbindable",)


@pytest.mark.parametrize("name", ["ü", "\udcff", "a\u2028b", "back\\slash"])
def test_names_of_any_bytes(name: str) -> None:
    written = name.replace("\\", "\\134")
    (mount,) = propagation.parse(f"1 1 0:1 / /m/{written} rw shared:3 - tmpfs tmpfs rw\n")
    assert mount == propagation.HostMount(f"/m/{name}", ("shared:3",))


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/srv/d")
    assert propagation.mount_of(str(tmp_path / "link/x"), propagation.parse(MOUNTINFO)[::-1]).point == "/srv/d"


def test_only_binds_that_share_are_looked_at() -> None:
    points = [
        MountPoint(type=kind, source="/proc/self", destination="/d", propagation=mode)
        for kind, mode in (("volume", "rshared"), ("bind", "rprivate"), ("bind", ""))
    ]
    propagation.check(points)


def test_what_cannot_be_shared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "parse", lambda _: [propagation.HostMount("/", ())])
    for mode, kind in (("rshared", "shared"), ("slave", "shared or slave")):
        point = MountPoint(type="bind", source="/srv", destination="/d", propagation=mode)
        with pytest.raises(Internal, match=rf"path /srv is mounted on / but it is not a {kind} mount"):
            propagation.check([point])
