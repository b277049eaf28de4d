"""Hostile archives by way of the docker client: contained, or refused in words, and the engine goes on."""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable

import pytest

from tests.support.engine import Engine
from tests.support.registry_images import sha256


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(image=False)


def tar(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """Members as (name, type, data, link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, data, link in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(data), link
            archive.addfile(entry, io.BytesIO(data) if data else None)
    return out.getvalue()


def file(name: str, data: bytes = b"x") -> tuple[str, bytes, bytes, str]:
    return name, tarfile.REGTYPE, data, ""


def image(layer: bytes, name: str, *extra: tuple[str, bytes, bytes, str]) -> bytes:
    """A ``docker save`` archive with one layer."""
    rootfs = {"type": "layers", "diff_ids": [sha256(layer)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = json.dumps([{"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]}]).encode()
    return tar(file("l.tar", layer), file("c.json", config), file("manifest.json", manifest), *extra)


def test_what_climbs_lands_inside(engine: Engine) -> None:
    mark = f"evil-{uuid.uuid4().hex}"
    climbing = "../" * 30 + f"tmp/{mark}"
    layer = tar(
        file(f"/tmp/{mark}-absolute"),
        file(climbing),
        ("out", tarfile.SYMTYPE, b"", "/tmp"),
        file(f"out/{mark}-linked"),
        ("up", tarfile.SYMTYPE, b"", "../../../../../../tmp"),
        file(f"up/{mark}-climbed"),
        (".wh.../.wh...", tarfile.REGTYPE, b"", ""),
    )
    done = engine.docker("load", stdin=image(layer, "climbing:v1"), check=False)
    assert done.returncode == 0 or "whiteout" in done.stderr
    engine.docker("import", "-", "imported:v1", stdin=layer, check=False)
    assert not [name for name in os.listdir("/tmp") if name.startswith(mark)]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (tar(("stolen", tarfile.LNKTYPE, b"", "../../../../etc/passwd")), "hard link"),
        (tar(("d", tarfile.DIRTYPE, b"", ""), file("d/.wh..")), "whiteout"),
        (tar(("./", tarfile.SYMTYPE, b"", "/etc")), "root directory"),
        (tar(file("f"))[:700], "truncated"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(engine: Engine, layer: bytes, words: str) -> None:
    done = engine.docker("load", stdin=image(layer, "refused:v1"), check=False)
    assert done.returncode != 0
    assert words in done.stderr
    assert "refused" not in engine.docker("image", "ls").stdout


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_archive_names_that_lead_out_are_refused(engine: Engine, name: str) -> None:
    done = engine.docker("load", stdin=image(tar(file("f")), "out:v1", file(name)), check=False)
    assert done.returncode != 0
    assert "leads out of the archive" in done.stderr


def test_layers_that_are_not_what_the_config_says(engine: Engine) -> None:
    honest = image(tar(file("f")), "lying:v1")
    lying = honest.replace(sha256(tar(file("f"))).encode(), sha256(b"other").encode())
    done = engine.docker("load", stdin=lying, check=False)
    assert done.returncode != 0
    assert "lying" not in engine.docker("image", "ls").stdout
