"""``--registry-mirror``: whatever the default registry is asked goes to its mirror first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Engine
from tests.support.registry import running_registry


@pytest.fixture(scope="module")
def mirrored(make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = make_engine("--registry-mirror", "http://127.0.0.1:5000")
    with running_registry(engine.host.base / "registry", host=engine.host) as address:
        for tag in ("1", "2"):
            name = f"{address}/library/mirrored:{tag}"
            engine.docker("tag", "busybox", name)
            engine.docker("push", "--quiet", name)
            engine.docker("rmi", name)
        yield engine


def test_pull_every_tag(mirrored: Engine) -> None:
    mirrored.docker("pull", "--all-tags", "mirrored")
    assert sorted(mirrored.docker("images", "mirrored", "--format", "{{.Tag}}").stdout.split()) == ["1", "2"]
    mirrored.docker("rmi", "mirrored:1", "mirrored:2")


def test_what_a_name_points_at(mirrored: Engine) -> None:
    status, told = mirrored.api("GET", "/distribution/mirrored:1/json")
    assert status == 200
    assert told["Descriptor"]["digest"].startswith("sha256:") and told["Platforms"][0]["os"] == "linux"
