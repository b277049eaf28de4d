"""Which mounts the manager makes, and what templates become; without a kernel."""

from __future__ import annotations

import pytest

from containerd_py.mounts.plan import fill_in, plan
from oci import errors
from protos.containerd.types_pb2 import ActiveMount, Mount


def kinds(*types: str, temporary: bool = False) -> tuple[int, list[tuple[str, tuple[str, ...]]]]:
    made = plan([Mount(type=kind) for kind in types], temporary=temporary)
    return made.own, [(step.mount.type, step.transforms) for step in made.steps]


def test_what_the_kernel_mounts_is_the_clients() -> None:
    with pytest.raises(errors.Unimplemented):
        kinds("bind", "overlay")
    with pytest.raises(errors.Unimplemented):
        kinds("fuse/thing")  # not a transform: a type with a slash in it
    with pytest.raises(errors.Unimplemented):
        kinds()


def test_everything_before_a_transformed_mount_is_the_managers() -> None:
    assert kinds("bind", "format/overlay") == (1, [("bind", ()), ("overlay", ("format",))])
    assert kinds("mkfs/loop", "ext4", "format/mkdir/overlay", "bind") == (
        2,
        [("loop", ("mkfs",)), ("ext4", ()), ("overlay", ("format", "mkdir")), ("bind", ())],
    )
    assert kinds("loop", "erofs")[0] == 1, "a handled type is mounted itself"
    assert kinds("mkdir/bind")[0] == 0, "a transform may be all there is to do"
    assert kinds("bind", "overlay", temporary=True)[0] == 2


def active(*points: str) -> list[ActiveMount]:
    return [ActiveMount(mount=Mount(source=f"s{p}", target=f"t{p}"), mount_point=p) for p in points]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{{ mount 0 }}/upper", "/a/upper"),
        ("{{source 1}}:{{ target 1 }}", "s/b:t/b"),
        ("lowerdir={{ overlay 0 2 }}", "lowerdir=/a:/b:/c"),
        ("lowerdir={{- overlay 2 1 -}}", "lowerdir=/c:/b"),
    ],
)
def test_templates(text: str, filled: str) -> None:
    mount = Mount(source=text, target=text, options=[text, "ro"])
    fill_in(mount, active("/a", "/b", "/c"))
    assert (mount.source, mount.target, list(mount.options)) == (filled, filled, [filled, "ro"])


@pytest.mark.parametrize(
    "text", ["{{ mount 3 }}", "{{ mount -1 }}", "{{ mount }}", "{{ overlay 1 }}", "{{ len 1 }}", "{{"]
)
def test_templates_that_mean_nothing(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="mount"):
        fill_in(Mount(options=[text]), active("/a", "/b", "/c"))
