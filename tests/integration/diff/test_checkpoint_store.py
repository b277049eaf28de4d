"""Checkpoints into the content store and out of it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from containerd_py.checkpoints import MEDIA_FILES, MEDIA_SPEC, Checkpoints
from containerd_py.interfaces import Scope
from oci.errors import FailedPrecondition, InvalidArgument, NotFound
from protos.containerd import containers_pb2, runc_options_pb2, tasks_pb2
from tests.integration.diff.conftest import SCOPE, Stores


class Containers:
    """One container."""

    def get(self, scope: Scope, id: str) -> containers_pb2.Container:
        container = containers_pb2.Container(id=id)
        container.spec.type_url, container.spec.value = "spec", b"{}"
        return container


@pytest.fixture
def checkpoints(stores: Stores) -> Checkpoints:
    containers: Any = Containers()
    return Checkpoints(stores.content, stores.workers, containers, str(stores.root / "checkpoints"))


def test_there_and_back(stores: Stores, checkpoints: Checkpoints, tmp_path: Path) -> None:
    async def dump(directory: str) -> None:
        Path(directory, "pages-1.img").write_bytes(b"page" * 1000)
        Path(directory, "inventory.img").write_bytes(b"all")

    files, spec = stores.run(lambda: checkpoints.store(SCOPE, "c", dump))
    assert (files.media_type, spec.media_type) == (MEDIA_FILES, MEDIA_SPEC)
    assert b"{}" in stores.content.read(SCOPE, spec.digest)
    assert list((stores.root / "checkpoints").iterdir()) == [], "nothing stays on the way"
    restore = checkpoints.wanted(SCOPE, tasks_pb2.CreateTaskRequest(container_id="c", checkpoint=files))
    assert restore is not None
    target = str(tmp_path / "unpacked")
    assert stores.run(lambda: restore(target)) == target
    found = {path.name: path.read_bytes() for path in Path(target).iterdir()}
    assert found == {"pages-1.img": b"page" * 1000, "inventory.img": b"all"}


def test_a_dump_that_fails_leaves_nothing(stores: Stores, checkpoints: Checkpoints) -> None:
    async def dump(directory: str) -> None:
        Path(directory, "half.img").write_bytes(b"x")
        Path(directory).with_name("log.json").write_text("{}")
        raise FailedPrecondition("criu is not installed")

    with pytest.raises(FailedPrecondition, match="criu is not installed"):
        stores.run(lambda: checkpoints.store(SCOPE, "c", dump))
    assert list((stores.root / "checkpoints").iterdir()) == []
    assert not list(stores.content.walk(SCOPE))


def test_what_a_request_wants(stores: Stores, checkpoints: Checkpoints) -> None:
    request = tasks_pb2.CreateTaskRequest(container_id="c")
    assert checkpoints.wanted(SCOPE, request) is None
    request.options.type_url = "containerd.runc.v1.Options"
    request.options.value = runc_options_pb2.Options(criu_image_path="/a/checkpoint").SerializeToString()
    given = checkpoints.wanted(SCOPE, request)
    assert given is not None and stores.run(lambda: given("/unused")) == "/a/checkpoint"
    wrong = tasks_pb2.CreateTaskRequest(container_id="c")
    wrong.checkpoint.media_type = "text/plain"
    with pytest.raises(InvalidArgument, match="not 'text/plain'"):
        checkpoints.wanted(SCOPE, wrong)
    absent = tasks_pb2.CreateTaskRequest(container_id="c")
    absent.checkpoint.media_type, absent.checkpoint.digest = MEDIA_FILES, "sha256:" + "0" * 64
    restore = checkpoints.wanted(SCOPE, absent)
    assert restore is not None
    with pytest.raises(NotFound):
        stores.run(lambda: restore(str(stores.root / "never")))
