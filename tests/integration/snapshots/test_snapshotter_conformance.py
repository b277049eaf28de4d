"""What every snapshotter must do, run for each of them: life cycle, contents, errors, leases, events, crashes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_py.interfaces import Mount, Scope
from containerd_py.snapshots import base
from containerd_py.snapshots.base import ACTIVE, COMMITTED, VIEW
from oci.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.integration.snapshots.conftest import SCOPE, World, in_mounts


def write(name: str, text: str) -> Callable[[Path], None]:
    def work(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return work


def own_root(root: Path) -> None:
    os.chown(root, 7, 8)
    os.chmod(root, 0o750)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def committed(world: World, name: str, parent: str = "", file: str = "file", text: str = "text") -> None:
    mounts = world.snapshotter.prepare(SCOPE, f"{name}-active", parent)
    in_mounts(mounts, write(file, text))
    world.snapshotter.commit(SCOPE, name, f"{name}-active")


def shown(world: World, mounts: list[Mount]) -> list[str]:
    return in_mounts(mounts, names)


def test_layers_show_what_lies_below_and_change_nothing_there(world: World) -> None:
    committed(world, "base", file="a")
    committed(world, "middle", "base", file="b")
    top = world.snapshotter.prepare(SCOPE, "top", "middle")
    assert shown(world, top) == ["a", "b"]

    in_mounts(top, lambda root: (root / "a").unlink())
    in_mounts(top, write("b", "changed"))
    assert shown(world, world.snapshotter.mounts(SCOPE, "top")) == ["b"]
    assert shown(world, world.snapshotter.view(SCOPE, "view", "middle")) == ["a", "b"]
    below = in_mounts(world.snapshotter.mounts(SCOPE, "view"), lambda root: (root / "b").read_text())
    assert below == "text"


@pytest.mark.parametrize("parents", [0, 1, 2])
def test_views_cannot_be_written(world: World, parents: int) -> None:
    parent = ""
    for number in range(parents):
        committed(world, f"layer{number}", parent, file=f"f{number}")
        parent = f"layer{number}"
    mounts = world.snapshotter.view(SCOPE, "view", parent)
    with pytest.raises(OSError) as refused:
        in_mounts(mounts, write("new", ""))
    assert refused.value.errno == errno.EROFS
    with pytest.raises(FailedPrecondition):
        world.snapshotter.commit(SCOPE, "name", "view")


def test_sixty_layers_stack(world: World) -> None:
    parent = ""
    for number in range(60):
        committed(world, f"layer{number}", parent, file=f"f{number:02}")
        parent = f"layer{number}"
    assert shown(world, world.snapshotter.prepare(SCOPE, "top", parent)) == [f"f{n:02}" for n in range(60)]


def test_owner_and_mode_of_the_root_are_inherited(world: World) -> None:
    mounts = world.snapshotter.prepare(SCOPE, "a")
    in_mounts(mounts, own_root)
    world.snapshotter.commit(SCOPE, "base", "a")
    for mounts in (world.snapshotter.prepare(SCOPE, "b", "base"), world.snapshotter.view(SCOPE, "c", "base")):
        info = in_mounts(mounts, lambda root: root.stat())
        assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (7, 8, 0o750)


def test_stat_tells_kind_parent_labels_and_times(world: World) -> None:
    before = time.time_ns()
    committed(world, "base")
    world.snapshotter.prepare(SCOPE, "active", "base", {"a": "b"})
    world.snapshotter.view(SCOPE, "view", "base")
    active = world.snapshotter.stat(SCOPE, "active")
    assert (active.name, active.parent, active.kind, active.labels) == ("active", "base", ACTIVE, {"a": "b"})
    assert before <= active.created_at <= active.updated_at <= time.time_ns()
    assert world.snapshotter.stat(SCOPE, "view").kind == VIEW
    base = world.snapshotter.stat(SCOPE, "base")
    assert (base.parent, base.kind) == ("", COMMITTED)
    with pytest.raises(NotFound):
        world.snapshotter.stat(SCOPE, "base-active")


def test_names_are_taken_once_per_namespace(world: World) -> None:
    committed(world, "base")
    world.snapshotter.prepare(SCOPE, "key")
    for key in ("key", "base"):
        with pytest.raises(AlreadyExists):
            world.snapshotter.prepare(SCOPE, key)
        with pytest.raises(AlreadyExists):
            world.snapshotter.view(SCOPE, key)
    with pytest.raises(AlreadyExists):
        world.snapshotter.commit(SCOPE, "base", "key")
    assert world.snapshotter.stat(SCOPE, "key").kind == ACTIVE

    other = Scope("other")
    world.snapshotter.prepare(other, "key")
    with pytest.raises(NotFound):
        world.snapshotter.prepare(other, "second", "base")
    assert [info.name for info in world.snapshotter.walk(other)] == ["key"]


def test_parents_are_committed_snapshots(world: World) -> None:
    world.snapshotter.prepare(SCOPE, "active")
    with pytest.raises(InvalidArgument):
        world.snapshotter.prepare(SCOPE, "child", "active")
    with pytest.raises(NotFound):
        world.snapshotter.prepare(SCOPE, "child", "nobody")
    assert [info.name for info in world.snapshotter.walk(SCOPE)] == ["active"]
    assert len(world.directories()) == 1


def test_what_is_not_there_is_not_found(world: World) -> None:
    snapshotter = world.snapshotter
    for call in (snapshotter.mounts, snapshotter.remove, snapshotter.usage, snapshotter.stat):
        with pytest.raises(NotFound):
            call(SCOPE, "nobody")
    with pytest.raises(NotFound):
        snapshotter.commit(SCOPE, "name", "nobody")
    with pytest.raises(NotFound):
        snapshotter.update(SCOPE, "nobody", {})
    with pytest.raises(InvalidArgument):
        snapshotter.prepare(SCOPE, "")


def test_committed_snapshots_have_no_mounts_and_are_committed_once(world: World) -> None:
    committed(world, "base")
    with pytest.raises(FailedPrecondition):
        world.snapshotter.mounts(SCOPE, "base")
    with pytest.raises(FailedPrecondition):
        world.snapshotter.commit(SCOPE, "again", "base")


def test_removal_goes_from_the_top_and_gives_the_bytes_back(world: World) -> None:
    committed(world, "base")
    committed(world, "top", "base", file="other")
    with pytest.raises(FailedPrecondition):
        world.snapshotter.remove(SCOPE, "base")
    world.snapshotter.remove(SCOPE, "top")
    world.snapshotter.remove(SCOPE, "base")
    world.snapshotter.cleanup()
    assert world.directories() == []
    assert world.snapshotter.walk(SCOPE) == []


def test_commit_keeps_its_own_labels_and_update_changes_them(world: World) -> None:
    snapshotter = world.snapshotter
    snapshotter.prepare(SCOPE, "key", labels={"old": "1"})
    snapshotter.commit(SCOPE, "name", "key", {"a": "1", "b": "2"})
    assert snapshotter.stat(SCOPE, "name").labels == {"a": "1", "b": "2"}
    assert snapshotter.update(SCOPE, "name", {"b": "", "c": "3"}, ["labels.b", "labels.c"]).labels == {
        "a": "1",
        "c": "3",
    }
    assert snapshotter.update(SCOPE, "name", {"d": "4"}).labels == {"d": "4"}
    assert snapshotter.update(SCOPE, "name", {"e": "5"}, ["labels"]).labels == {"e": "5"}
    with pytest.raises(InvalidArgument):
        snapshotter.update(SCOPE, "name", {}, ["parent"])
    assert snapshotter.stat(SCOPE, "name").labels == {"e": "5"}


def test_usage_counts_what_the_snapshot_itself_holds(world: World) -> None:
    committed(world, "base", text="x" * 100_000)
    base = world.snapshotter.usage(SCOPE, "base")
    assert base.size >= 100_000
    assert base.inodes == 2
    mounts = world.snapshotter.prepare(SCOPE, "top", "base")
    empty = world.snapshotter.usage(SCOPE, "top")
    in_mounts(mounts, write("more", "y" * 200_000))
    in_mounts(mounts, lambda root: os.link(root / "more", root / "link"))
    full = world.snapshotter.usage(SCOPE, "top")
    assert 200_000 <= full.size - empty.size < 220_000
    assert full.inodes - empty.inodes == 1
    if not world.snapshotter.copies:
        assert empty.size < 100_000


def test_walk_filters(world: World) -> None:
    committed(world, "base")
    world.snapshotter.prepare(SCOPE, "one", "base", {"color": "red", "a.b/c": "x"})
    world.snapshotter.view(SCOPE, "two", "base")

    def found(*filters: str) -> list[str]:
        return [info.name for info in world.snapshotter.walk(SCOPE, filters)]

    assert found() == ["base", "one", "two"]
    assert found("kind==active") == ["one"]
    assert found("parent==base") == ["one", "two"]
    assert found("name==two", "labels.color==red") == ["one", "two"]
    assert found('labels."a.b/c"==x') == ["one"]


def test_leases_hold_what_is_made_under_them(world: World) -> None:
    with world.database.transaction() as tx:
        tx.execute("INSERT INTO leases VALUES ('default', 'lease', '{}', 0)")
    leased = Scope("default", "lease")

    def held() -> list[str]:
        return [row[0] for row in world.database.rows("SELECT id FROM lease_resources ORDER BY id")]

    world.snapshotter.prepare(leased, "key")
    assert held() == ["key"]
    world.snapshotter.commit(leased, "name", "key")
    assert held() == ["name"]
    world.snapshotter.remove(leased, "name")
    assert held() == []
    with pytest.raises(NotFound):
        world.snapshotter.prepare(Scope("default", "nobody"), "other")
    assert world.snapshotter.walk(SCOPE) == []
    committed(world, "base")
    assert world.snapshotter.hold(leased, "base")
    assert not world.snapshotter.hold(leased, "nobody")
    assert held() == ["base"]


def test_changes_are_told_as_containerd_tells_them(world: World) -> None:
    committed(world, "base")
    world.snapshotter.view(SCOPE, "view", "base")
    world.snapshotter.remove(SCOPE, "view")
    assert [(namespace, topic) for namespace, topic, _ in world.events] == [
        ("default", "/snapshot/prepare"),
        ("default", "/snapshot/commit"),
        ("default", "/snapshot/remove"),
    ]


def test_a_start_sweeps_directories_without_rows(world: World) -> None:
    committed(world, "base")
    kept = world.directories()
    for name in ("9999", "gone-5-1", "new-abc"):
        Path(world.snapshotter.directory, name, "fs").mkdir(parents=True)
    world.reopen().cleanup()
    assert world.directories() == kept
    assert shown(world, world.snapshotter.view(SCOPE, "v", "base")) == ["file"]


def test_a_start_forgets_rows_without_directories_and_all_upon_them(world: World) -> None:
    committed(world, "base")
    committed(world, "middle", "base", file="m")
    world.snapshotter.prepare(SCOPE, "top", "middle")
    committed(world, "other")
    lost = world.snapshotter.id_of(SCOPE, "middle")
    os.rename(world.snapshotter.path(lost), world.root / "elsewhere")
    world.reopen().cleanup()
    assert [info.name for info in world.snapshotter.walk(SCOPE)] == ["base", "other"]
    assert len(world.directories()) == 2


def test_a_number_left_by_a_rolled_back_transaction_is_taken_over(world: World) -> None:
    world.snapshotter.prepare(SCOPE, "first")
    taken = world.snapshotter.id_of(SCOPE, "first") + 1
    Path(world.snapshotter.directory, str(taken), "fs").mkdir(parents=True)
    Path(world.snapshotter.directory, str(taken), "fs", "rubbish").touch()
    mounts = world.snapshotter.prepare(SCOPE, "second")
    assert world.snapshotter.id_of(SCOPE, "second") == taken
    assert shown(world, mounts) == []


def test_prepare_is_quick(world: World) -> None:
    committed(world, "base")
    start = time.process_time()
    for number in range(100):
        world.snapshotter.prepare(SCOPE, f"key{number}", "base")
    assert (time.process_time() - start) / 100 < 0.002


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("boot", ["this", "another"])
def test_what_was_not_on_disk_when_the_power_went_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch, settled: bool, boot: str
) -> None:
    committed(world, "old")
    in_mounts(world.snapshotter.prepare(SCOPE, "active", "old"), write("file", "new"))
    world.snapshotter.commit(SCOPE, "new", "active", sync=False)
    world.snapshotter.prepare(SCOPE, "child", "new")
    if settled:
        world.snapshotter.settle(SCOPE, ["old", "new"])
    if boot == "another":
        monkeypatch.setattr(base, "boot_id", lambda: "another")
    names_left = {info.name for info in world.reopen().walk(SCOPE)}
    assert names_left == ({"old"} if boot == "another" and not settled else {"old", "new", "child"})
    assert world.database.rows("SELECT * FROM snapshots_unsynced") == []
    world.snapshotter.cleanup()
    assert len(world.directories()) == len(names_left)
