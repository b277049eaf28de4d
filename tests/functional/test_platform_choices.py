"""``--platform``: what is here for another machine is pulled, refused or warned of, as the docker CLI expects it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from engine.platforms import host_platform
from tests.support.engine import Engine


@pytest.fixture
def foreign(engine: Engine, busybox_tar: bytes) -> Iterator[str]:
    """An image for arm."""
    engine.docker("import", "--platform", "linux/arm/v7", "-c", 'CMD ["sh"]', "-", "foreign", stdin=busybox_tar)
    yield "foreign"
    engine.docker("rmi", "-f", "foreign")


def create(engine: Engine, image: str, platform: str) -> tuple[int, dict[str, object]]:
    found = engine.api("POST", f"/containers/create?platform={quote(platform, safe='')}", {"Image": image})
    if found[0] == 201:
        engine.docker("rm", found[1]["Id"])
    return found


def test_an_image_for_another_platform_is_not_found(engine: Engine) -> None:
    status, told = create(engine, "busybox", "linux/s390x")
    assert status == 404
    assert "does not match the specified platform: wanted linux/s390x, actual: linux/" in str(told["message"])


@pytest.mark.parametrize("platform", ["linux/arm/v7", "linux/arm"])
def test_the_asked_for_platform_gives_no_warning(engine: Engine, foreign: str, platform: str) -> None:
    status, told = create(engine, foreign, platform)
    assert (status, told["Warnings"]) == (201, [])


def test_another_variant_is_another_platform(engine: Engine, foreign: str) -> None:
    assert create(engine, foreign, "linux/arm/v6")[0] == 404


def test_a_foreign_image_that_nobody_asked_for_is_warned_of(engine: Engine, foreign: str) -> None:
    status, told = create(engine, foreign, "")
    assert status == 201
    assert "image's platform (linux/arm/v7) does not match the detected host platform" in str(told["Warnings"])


@pytest.mark.parametrize("platform", ["a/b/c/d", "linux/", "///", "lin ux/amd64"])
def test_what_is_no_platform_is_refused(engine: Engine, platform: str) -> None:
    assert create(engine, "busybox", platform)[0] == 400


def test_the_container_tells_its_system(engine: Engine) -> None:
    name = engine.docker("create", "--platform", f"linux/{host_platform().architecture}", "busybox").stdout.strip()
    assert engine.docker("inspect", "-f", "{{.Platform}}", name).stdout == "linux\n"
    engine.docker("rm", name)
