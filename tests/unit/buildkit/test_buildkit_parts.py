"""Attributes as options, Go's file modes, kept contents, and what a client is shown."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from engine.build.dockerfile.errors import Lines
from engine.build.dockerfile.parser import parse
from engine.build.plan import plan
from engine.build.progress import Step
from engine.build.running import StepFailed
from engine.build.trees import Node
from engine.buildkit.contents import Arriving, ContentStores
from engine.buildkit.failures import SOURCE_TYPE, Failure, abort, failure_of, text_of
from engine.buildkit.filemodes import from_go, node_of, stat_of, to_go
from engine.buildkit.filesync import metadata
from engine.buildkit.inputs import _expected
from engine.buildkit.linking import definition_of, name_in, operations
from engine.buildkit.recorder import Recorder
from engine.buildkit.requests import CacheEntry, build_request, check_cache_exports
from engine.buildkit.status import MAX_LOG, Status
from engine.buildkit.synced import reduced
from engine.containers.config import Ulimit
from oci.errors import InvalidArgument, Unimplemented
from protos.buildkit.control_pb2 import StatusResponse
from protos.buildkit.ops_pb2 import Definition, Op, SourceOp
from protos.containerd.rpc_status_pb2 import Status as RpcStatus


def request(**attributes: str) -> Any:
    """A request with attributes, whose dashes are written ``_`` and colons ``__``."""
    found = {name.replace("__", ":").replace("_", "-"): value for name, value in attributes.items()}
    return build_request("dockerfile.v0", found, [])


def test_attributes_become_options() -> None:
    found = request(
        filename="sub/D", target="t", build_arg__A="1", label__x="y", no_cache="", image_resolve_mode="pull",
        force_network_mode="none", add_hosts="a=10.0.0.1,b=10.0.0.2", shm_size="5", ulimit="nofile=1:2,nproc=3",
        cgroup_parent="/p", platform="linux/arm64", context__lib="local:lib",
    )  # fmt: skip
    options = found.options
    assert (options.dockerfile, options.target, options.build_args, options.labels) == (
        "sub/D", "t", {"A": "1"}, {"x": "y"},
    )  # fmt: skip
    assert options.no_cache and options.pull and options.network == "none" and options.no_cache_stages == ()
    assert options.host.extra_hosts == ("a:10.0.0.1", "b:10.0.0.2") and options.host.shm_size == 5
    assert options.host.ulimits == (Ulimit("nofile", 2, 1), Ulimit("nproc", 3, 3))
    assert options.host.cgroup_parent == "/p" and options.platform is not None
    assert found.named == {"lib": "local:lib"} and (found.context_key, found.dockerfile_key) == (
        "context",
        "dockerfile",
    )


def test_equal_requests_are_equal_in_any_order() -> None:
    there, back = request(label__a="1", label__b="2"), request(label__b="2", label__a="1")
    assert list(there.options.labels.items()) == list(back.options.labels.items())


def test_a_result_is_named_by_a_graph_of_ours_alone() -> None:
    assert name_in(definition_of("a1")) == "a1"
    other = Op(source=SourceOp(identifier="docker-image://docker.io/library/busybox")).SerializeToString()
    for data in (other, b"\xff"):
        definition = Definition()
        operations(definition).append(data)
        assert name_in(definition) == ""
    assert build_request("dockerfile.v0", {"context:x": "input:k"}, [], {"k": "a1"}).inputs == {"k": "a1"}
    with pytest.raises(Unimplemented, match="context x"):
        build_request("dockerfile.v0", {"context:x": "input:k"}, [], {"k": ""})


def test_stages_without_cache_and_contexts_from_elsewhere() -> None:
    options = request(no_cache="one,two").options
    assert not options.no_cache and options.no_cache_stages == ("one", "two")
    assert request(context="https://host/x.git").dockerfile_key == ""
    assert request(context="https://host/x.git", dockerfilekey="dockerfile").dockerfile_key == "dockerfile"


@pytest.mark.parametrize(
    "attributes",
    [
        {"platform": "linux/amd64,linux/arm64"}, {"attest:sbom": ""}, {"requestid": "frontend.outline"},
        {"build-arg:BUILDKIT_SYNTAX": "other/front"}, {"context:x": "oci-layout://y"},
        {"cache-imports": '[{"Type":"gha","Attrs":{}}]'},
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused(attributes: dict[str, str]) -> None:
    with pytest.raises(Unimplemented):
        build_request("dockerfile.v0", attributes, [])


def test_front_ends_and_caches() -> None:
    for image in ("docker/dockerfile:1", "docker.io/docker/dockerfile:1.7@sha256:aa"):
        build_request("gateway.v0", {"source": image}, [])
    with pytest.raises(Unimplemented, match="front end"):
        build_request("gateway.v0", {"source": "other/x"}, [])
    imports = json.dumps([{"Type": "registry", "Attrs": {"ref": "a"}}])
    found = build_request("dockerfile.v0", {"cache-imports": imports}, [CacheEntry("registry", {"ref": "b"})])
    assert found.options.cache_from == ("b", "a")
    kept = check_cache_exports([CacheEntry("inline", {})], found.options)
    assert kept.build_args == {"BUILDKIT_INLINE_CACHE": "1"}
    with pytest.raises(Unimplemented, match="type=local"):
        check_cache_exports([CacheEntry("local", {})], found.options)
    with pytest.raises(InvalidArgument):
        request(shm_size="x")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (stat.S_IFREG | 0o644, 0o644), (stat.S_IFDIR | 0o1777, 1 << 31 | 1 << 20 | 0o777),
        (stat.S_IFREG | 0o6755, 1 << 23 | 1 << 22 | 0o755), (stat.S_IFLNK | 0o777, 1 << 27 | 0o777),
        (stat.S_IFCHR | 0o600, 1 << 26 | 1 << 21 | 0o600), (stat.S_IFIFO | 0o600, 1 << 25 | 0o600),
    ],
)  # fmt: skip
def test_modes_both_ways(ours: int, theirs: int) -> None:
    assert to_go(ours) == theirs and from_go(theirs) == ours


def test_files_both_ways() -> None:
    node = Node(stat.S_IFCHR | 0o600, mtime=7, uid=1, gid=2, rdev=os.makedev(5, 300))
    assert node_of(stat_of("x", node, {"user.a": b"b"})) == node
    with pytest.raises(InvalidArgument):
        from_go(1 << 31 | 1 << 27)


def test_contents_are_known_by_times_that_tell(tmp_path: Path) -> None:
    names = iter(range(100))
    stores = ContentStores(lambda: str(tmp_path / str(next(names))))
    contents = stores.use("key", "context")
    old = time.time_ns() - 10**9
    telling = Node(stat.S_IFREG | 0o644, 5, old - old % 10**9 + 1)
    coarse = telling._replace(mtime=old - old % 10**9)
    recent = telling._replace(mtime=time.time_ns())
    for name, node in (("telling", telling), ("coarse", coarse), ("recent", recent)):
        arriving = Arriving(contents, node)
        arriving.write(b"12")
        arriving.write(b"345 and more than was announced")
        contents.put(name, node, arriving.finish())
    place = contents.find("telling", telling)
    assert place is not None and os.pread(contents.fd, place.size, place.offset) == b"12345"
    assert contents.find("telling", telling._replace(size=6)) is None
    assert contents.find("coarse", coarse) is None and contents.find("recent", recent) is None
    assert stores.use("key", "context") is contents and stores.use("", "context") is not contents
    stores.clear()
    assert contents.fd >= 0, "two builds still read it"
    contents.done()
    contents.done()
    assert contents.fd < 0 and list(tmp_path.iterdir()) == []


def test_paths_that_lead_to_what_copy_names() -> None:
    assert reduced(["a", "./b/../c/*.txt"]) == {"a", "c/*.txt"}
    assert reduced(["."]) is None and reduced(["$X"]) is None and reduced(["a/**/b"]) is None
    dockerfile = b"FROM x\nCOPY a b/c /d/\nADD https://host/f e /\nCOPY --from=y z /\n"
    assert _expected(dockerfile) == {"a", "b/c", "e"}
    assert _expected(b"FROM x\nRUN --mount=type=bind,target=/c true\n") is None
    assert _expected(b"NOPE\n") == set()


def test_names_that_are_not_ascii_are_escaped() -> None:
    assert metadata("context", {"exclude-patterns": ["a"], "followpaths": ["ä b", "c"]}) == (
        ("dir-name", "context"), ("exclude-patterns", "a"), ("followpaths", "%C3%A4+b"), ("followpaths", "c"),
        ("followpaths-encoded", "1"),
    )  # fmt: skip


def test_a_failure_carries_its_place() -> None:
    error = StepFailed('/bin/sh -c echo "x"', 3)
    assert text_of(error) == 'process "/bin/sh -c echo \\"x\\"" did not complete successfully: exit code: 3'
    assert failure_of(error).lines is None
    told: list[Any] = []

    class Context:
        async def abort(self, *arguments: Any) -> None:
            told.extend(arguments)

    asyncio.run(abort(Context(), Failure("text", "Dockerfile", b"FROM x\n", Lines(1, 1))))
    status = RpcStatus.FromString(told[2][0][1])
    detail = json.loads(status.details[0].value)
    assert status.message == told[1] == "text" and status.details[0].type_url == SOURCE_TYPE
    assert base64.b64decode(detail["info"]["data"]) == b"FROM x\n" and detail["ranges"] == [
        {"start": {"line": 1}, "end": {"line": 1}}
    ]


def events(status: Status) -> list[StatusResponse]:
    async def collect() -> list[StatusResponse]:
        return [event async for event in status.stream()]

    status.close()
    return asyncio.run(collect())


def test_steps_are_numbered_within_their_stage_and_told_in_advance() -> None:
    source = b"FROM busybox AS one\nENV a=b\nRUN x\nFROM one\nCOPY --from=one a /\nWORKDIR /w\n"
    status = Status()
    recorder = Recorder(status, status.vertex("loaded"), "Dockerfile", source)
    recorder.planned(plan(parse(source), build_args={}, automatic={}))
    log = recorder.stage()
    log.begin(Step(1, 6, "", "FROM busybox AS one"))
    log.begin(Step(2, 6, "", "ENV a=b"))
    log.begin(Step(3, 6, "", "RUN x"))
    log.output("y" * MAX_LOG)
    log.output("past the limit")
    log.output("not told")
    log.end("failed")
    recorder.fail("because")
    (told,) = events(status)
    names = list(dict.fromkeys(vertex.name for vertex in told.vertexes))
    assert names == [
        "[one 1/2] FROM docker.io/library/busybox:latest", "[one 2/2] RUN x", "[stage-1 1/2] COPY --from=one a /",
        "[stage-1 2/2] WORKDIR /w",
    ]  # fmt: skip
    last = {vertex.name: vertex for vertex in told.vertexes}
    assert last[names[0]].cached and last[names[1]].error == "because" and not last[names[2]].HasField("started")
    assert len(told.logs[0].msg) == MAX_LOG and b"clipped" in told.logs[1].msg
    assert len(told.logs) == 2
