"""The build cache through the docker client: keyed by content, shared, durable, and gone when it is pruned."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.engine import Engine

STEPS = "FROM busybox\nCOPY f /f\nRUN date +%s%N > /when; cat /f >> /when\nENV X=1\n"


@pytest.fixture(scope="module")
def builder(make_engine: Callable[..., Engine]) -> Engine:
    """An engine of its own: others must not fill its cache."""
    return make_engine()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "Dockerfile").write_text(STEPS)
    (tmp_path / "f").write_text("one")
    yield tmp_path


def build(engine: Engine, context: Path, *options: str) -> str:
    """The image's id."""
    words = ["env", "DOCKER_BUILDKIT=0", "docker", "-H", engine.url, "build", "-q", *options, str(context)]
    return engine.host.check(*words, timeout=120).strip()


def ctr(engine: Engine, *words: str) -> list[str]:
    socket = f"{engine.host.exec_root}/containerd/containerd.sock"
    return engine.host.check("ctr", "-a", socket, "-n", "moby", *words).split()


def test_times_of_files_do_not_count_and_their_content_does(builder: Engine, context: Path) -> None:
    first = build(builder, context)
    os.utime(context / "f", (1, 1))
    assert build(builder, context) == first
    (context / "f").write_text("two")
    second = build(builder, context)
    assert second != first
    (context / "f").write_text("one")
    assert build(builder, context) == first
    os.chmod(context / "f", 0o600)
    assert build(builder, context) not in (first, second)


def test_no_cache_runs_every_step_again(builder: Engine, context: Path) -> None:
    first = build(builder, context)
    assert build(builder, context, "--no-cache") != first


def test_build_arguments_count_where_they_are_declared(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN date +%N > /a\nARG V\nRUN date +%N > /b\n")
    one, two = build(builder, context, "--build-arg", "V=1"), build(builder, context, "--build-arg", "V=2")
    assert build(builder, context, "--build-arg", "V=1") == one != two
    layers = [
        builder.docker("inspect", "-f", "{{json .RootFS.Layers}}", image).stdout.strip("[]\n").split(",")
        for image in (one, two)
    ]
    assert layers[0][:2] == layers[1][:2] and layers[0][2] != layers[1][2]


def test_the_cache_outlives_the_daemon(builder: Engine, context: Path) -> None:
    first = build(builder, context)
    builder.kill("engine.main")
    builder.start()
    assert build(builder, context) == first


def test_equal_builds_at_once_run_a_step_once(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text(f"FROM busybox\nRUN sleep 1; date +%N > /when # {time.time()}\n")
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: build(builder, context), range(4)))) == 1


def test_rows_of_disk_usage_and_prune_by_id(builder: Engine, context: Path) -> None:
    build(builder, context)
    status, usage = builder.api("GET", "/system/df")
    rows = usage["BuildCache"]
    run = next(row for row in rows if row["Description"].startswith("RUN date") and row["Size"])
    assert status == 200 and run["InUse"] is False and run["UsageCount"] >= 0
    filters = quote(json.dumps({"id": [run["ID"]]}))
    status, answer = builder.api("POST", f"/build/prune?filters={filters}")
    assert answer["CachesDeleted"] == [run["ID"]] and answer["SpaceReclaimed"] == run["Size"]
    assert run["ID"] not in [row["ID"] for row in builder.api("GET", "/system/df")[1]["BuildCache"]]


def test_an_image_brings_its_cache(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nWORKDIR /w\nRUN date +%N > /when\nCOPY f /f\nENV A=1\n")
    inline = ("--build-arg", "BUILDKIT_INLINE_CACHE=1")
    first = build(builder, context, "-t", "carrier", *inline)
    builder.docker("save", "-o", str(context / "carrier.tar"), "carrier")
    builder.docker("rmi", "carrier")
    builder.docker("builder", "prune", "-af")
    builder.docker("load", "-i", str(context / "carrier.tar"))
    (context / "carrier.tar").unlink()
    assert build(builder, context, "--cache-from", "carrier", *inline) == first
    builder.docker("builder", "prune", "-af")
    assert build(builder, context, *inline) != first
    assert build(builder, context, "--cache-from", "no/such:cache", "-q")


def test_without_images_and_cache_nothing_is_left(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox AS a\nRUN --mount=type=cache,target=/c echo x > /c/x; echo y > /y\nCOPY f /f\n"
        "FROM busybox\nCOPY --from=a /y /\nWORKDIR /w\nRUN --mount=target=/ctx cp /ctx/f /g\n"
    )
    kept = build(builder, context, "-t", "kept")
    broken = "FROM busybox\nCOPY f /broken\nRUN echo x > /x\nRUN exit 1\n"
    (context / "Dockerfile").write_text(broken)
    words = ["env", "DOCKER_BUILDKIT=0", "docker", "-H", builder.url, "build", str(context)]
    assert builder.host.run(*words).returncode == 1
    builder.docker("builder", "prune", "-af")
    assert builder.docker("run", "--rm", "kept", "cat", "/g", check=False).stdout == "one"
    assert builder.docker("images", "-q", "--no-trunc", "kept").stdout.strip() == kept
    base = builder.docker("images", "-q", "busybox").stdout.strip()
    built = set(builder.docker("images", "-aq").stdout.split()) - {base}
    builder.docker("rmi", "-f", *built)
    builder.docker("rmi", "-f", base)
    builder.docker("builder", "prune", "-af")
    assert (ctr(builder, "content", "ls", "-q"), ctr(builder, "snapshots", "ls")[3:]) == ([], [])
    assert not list((builder.host.data_root / "buildcache").glob("*"))
    assert not list((builder.host.data_root / "builds").glob("*"))
