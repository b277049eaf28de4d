"""Images with the real docker client and SDK: import, names, removal, commit, archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.support.engine import Engine, now


@pytest.fixture(scope="module")
def house(make_engine: Callable[..., Engine]) -> Engine:
    """An engine of this module's own: tests here count images."""
    return make_engine()


@pytest.fixture
def sdk(house: Engine) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=house.url)
    yield client
    client.close()


def image_id(house: Engine, name: str) -> str:
    return house.docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip()


def test_import_takes_changes_and_any_compression(house: Engine, busybox_tar: bytes) -> None:
    packed = gzip.compress(busybox_tar, 1)
    made = house.docker("import", "-c", "ENV A=b", "-c", 'CMD ["echo", "hi"]', "-m", "why", "-", "imp:1", stdin=packed)
    assert made.stdout.strip() == image_id(house, "imp:1")
    config = json.loads(house.docker("image", "inspect", "-f", "{{json .Config}}", "imp:1").stdout)
    assert (config["Env"], config["Cmd"]) == (["A=b"], ["echo", "hi"])
    assert "why" in house.docker("history", "imp:1").stdout
    assert house.docker("run", "--rm", "imp:1").stdout == "hi\n"
    house.docker("rmi", "imp:1")


def test_names_come_and_go(house: Engine) -> None:
    house.docker("tag", "busybox", "other:2")
    assert image_id(house, "other:2") == image_id(house, "busybox")
    assert house.docker("rmi", "other:2").stdout == "Untagged: other:2\n"
    gone = house.docker("image", "inspect", "other:2", check=False)
    assert "No such image: other:2" in gone.stderr
    assert (
        house.docker("rmi", "nosuch", check=False).stderr
        == "Error response from daemon: No such image: nosuch:latest\n"
    )


def test_an_image_in_use_is_kept(house: Engine) -> None:
    container = house.docker("create", "busybox").stdout.strip()
    refused = house.docker("rmi", "busybox", check=False)
    assert "conflict: unable to remove repository reference" in refused.stderr
    assert container[:12] in refused.stderr
    house.docker("rm", container)


def test_commit_keeps_files_configuration_and_author(house: Engine) -> None:
    house.docker(
        "run", "--name", "committed", "-e", "E=1", "busybox", "sh", "-c", "echo new > /new; rm /www/index.html"
    )
    made = house.docker(
        "commit", "-a", "me", "-m", "why", "-c", 'CMD ["cat", "/new"]', "committed", "made:1"
    ).stdout.strip()
    assert house.docker("run", "--rm", "made:1").stdout == "new\n"
    assert house.docker("run", "--rm", "made:1", "ls", "/www").stdout == ""
    shown = json.loads(house.docker("image", "inspect", "made:1").stdout)[0]
    assert (shown["Id"], shown["Author"], shown["Comment"]) == (made, "me", "why")
    assert shown["Parent"] == image_id(house, "busybox")
    assert "E=1" in shown["Config"]["Env"]
    assert len(shown["RootFS"]["Layers"]) == 2
    house.docker("rm", "committed")
    assert f"Deleted: {made}" in house.docker("rmi", "made:1").stdout


def test_commit_of_a_running_container_leaves_it_running(house: Engine) -> None:
    container = house.docker("run", "-d", "busybox", "sleep", "60").stdout.strip()
    house.docker("commit", container, "live:1")
    assert house.docker("inspect", "-f", "{{.State.Status}}", container).stdout == "running\n"
    house.docker("rm", "-f", container)
    house.docker("rmi", "live:1")


def test_save_and_load_bring_an_image_back(house: Engine, tmp_path: Path) -> None:
    archive, before = tmp_path / "a.tar", image_id(house, "busybox")
    house.docker("tag", "busybox", "saved:1")
    house.docker("save", "-o", str(archive), "saved:1")
    with tarfile.open(archive) as tar:
        assert {"manifest.json", "index.json", "oci-layout"} <= set(tar.getnames())
    house.docker("rmi", "saved:1")
    assert "Loaded image: saved:1" in house.docker("load", "-i", str(archive)).stdout
    assert image_id(house, "saved:1") == before
    broken = house.docker("load", stdin=b"junk" * 400, check=False)
    assert broken.returncode == 1
    house.docker("rmi", "saved:1")


def test_prune_takes_only_images_without_a_name(house: Engine, busybox_tar: bytes) -> None:
    for change in ("A=1", "A=2"):
        house.docker("import", "-c", f"ENV {change}", "-", "moved:1", stdin=busybox_tar)
    loose = house.docker("images", "-q", "-f", "dangling=true").stdout.split()
    assert len(loose) == 1
    assert f"deleted: sha256:{loose[0]}" in house.docker("image", "prune", "-f").stdout
    assert house.docker("images", "-q", "-f", "dangling=true").stdout == ""
    house.docker("rmi", "moved:1")


def test_prune_keeps_what_its_filters_do_not_name(house: Engine, sdk: docker.DockerClient, busybox_tar: bytes) -> None:
    for number in ("1", "2"):
        for change in (f"LABEL team=one{number}", f"LABEL team=two{number}"):
            house.docker("import", "-c", change, "-", f"pruned:{number}", stdin=busybox_tar)
    loose = {image.labels["team"]: image.id for image in sdk.images.list(filters={"dangling": True})}
    assert set(loose) == {"one1", "one2"}

    def pruned(**filters: object) -> set[str]:
        answer = sdk.images.prune(filters=filters)["ImagesDeleted"] or []
        return {entry["Deleted"] for entry in answer if entry.get("Deleted") in loose.values()}

    assert pruned(dangling=True, label="team=nobody") == set()
    assert pruned(dangling=True, until="24h") == set(), "they are not that old"
    assert pruned(dangling=True, label="team=one1") == {loose["one1"]}
    assert pruned(dangling=True, **{"label!": "team=one2"}) == set()
    assert pruned(dangling=True) == {loose["one2"]}
    assert pruned(dangling=False, label="team=two1") == set(), "it was not loose"
    assert house.docker("images", "-q", "pruned").stdout.count("\n") == 1, "but unused, and named by the filter"
    house.docker("rmi", "pruned:2")


def test_filters_of_images_by_age_and_name(house: Engine, busybox_tar: bytes) -> None:
    def listed(*filters: str) -> set[str]:
        flags = (part for filter in filters for part in ("--filter", filter))
        return set(house.docker("images", "--format", "{{.Repository}}:{{.Tag}}", *flags).stdout.split())

    for name in ("aged:1", "aged:2", "aged:3"):
        house.docker("import", "-c", f"LABEL name={name}", "-", name, stdin=busybox_tar)
    named = "reference=aged:*"
    assert listed(named) == {"aged:1", "aged:2", "aged:3"}
    assert listed(named, "before=aged:2") == {"aged:1"}
    assert listed(named, "since=aged:2") == {"aged:3"}
    assert listed(named, "label=name=aged:2") == {"aged:2"}
    assert listed(named, "until=1h") == set()
    assert listed(named, "dangling=true") == set()
    assert "invalid filter" in house.docker("images", "--filter", "nosuch=1", check=False).stderr
    house.docker("rmi", "aged:1", "aged:2", "aged:3")


def test_disk_usage_counts_shared_layers_once(house: Engine, sdk: docker.DockerClient, busybox_tar: bytes) -> None:
    house.docker("import", "-", "df:base", stdin=busybox_tar)
    before = sdk.df()["LayersSize"]
    house.docker("create", "--name", "df", "df:base", "true")
    house.docker("cp", "-", "df:/", stdin=_tar_of("grown", b"x" * 1_000_000))
    house.docker("commit", "df", "df:grown")
    house.docker("rm", "df")
    found = sdk.df()
    base, grown = (
        next(i for i in found["Images"] if f"df:{tag}" in (i["RepoTags"] or ())) for tag in ("base", "grown")
    )
    assert base["SharedSize"] == grown["SharedSize"] == base["Size"]
    own = grown["Size"] - grown["SharedSize"]
    assert 1_000_000 <= own < 1_100_000
    assert found["LayersSize"] - before == own
    house.docker("rmi", "df:grown", "df:base")


def _tar_of(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def test_the_sdk_lists_filters_and_saves(house: Engine, sdk: docker.DockerClient) -> None:
    image = sdk.images.get("busybox")
    assert image.tags == ["busybox:latest"]
    assert [i.id for i in sdk.images.list(filters={"reference": "busy*"})] == [image.id]
    assert sdk.images.list(filters={"label": "nosuch"}) == []
    with tarfile.open(fileobj=io.BytesIO(b"".join(image.save(named=True)))) as tar:
        names = json.load(tar.extractfile("manifest.json"))[0]["RepoTags"]  # type: ignore[arg-type]  # it is a file
    assert names == ["busybox:latest"]
    with pytest.raises(docker.errors.ImageNotFound):
        sdk.images.get("nosuch")
    with pytest.raises(docker.errors.APIError, match="invalid reference format"):
        sdk.images.get("Upper::x")


def test_events_tell_of_images(house: Engine) -> None:
    house.docker("tag", "busybox", "told:1")
    house.docker("rmi", "told:1")
    lines = house.docker("events", "--since", "1h", "--until", now(), "--filter", "type=image").stdout
    assert "image tag sha256:" in lines
    assert "(name=told:1)" in lines
    assert "image untag sha256:" in lines
