"""``docker build`` with the buildx plugin, as it comes: BuildKit's protocol, our builder.

Rule: the programs are docker's own, unchanged; what they made is looked at through docker.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.buildx import MISSING_BUILDX, Buildx
from tests.support.engine import Engine
from tests.support.host import wait_for

pytestmark = pytest.mark.skipif(not Buildx.there(), reason=MISSING_BUILDX)


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def build(engine: Engine, tmp_path: Path) -> Iterator[Buildx]:
    (tmp_path / "context").mkdir()
    yield Buildx(engine, tmp_path)


def shown(build: Buildx, image: str, *command: str) -> str:
    """What a command in a container of ``image`` writes."""
    return build.engine.docker("run", "--rm", image, *command).stdout


def test_an_image_is_built_cached_and_tagged(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nENV A=1\nCOPY f /f\nRUN echo ran > /r; echo seen $((40 + 2))\n")
    build.write("f", "x")
    first = build("-t", "first", ".")
    assert "[2/3] COPY f /f" in first and "[3/3] RUN echo ran" in first
    assert "seen 42" in first and "naming to docker.io/library/first:latest" in first
    assert shown(build, "first", "cat", "/f", "/r") == "xran\n"
    again = build("-t", "second", ".")
    assert again.count(" CACHED") == 3 and "seen 42" not in again
    ids = build.engine.docker("inspect", "-f", "{{.Id}}", "first", "second").stdout.split()
    assert ids[0] == ids[1] == build.quiet(".")
    fresh = build("--no-cache", "-t", "third", ".")
    assert "seen 42" in fresh


def test_arguments_labels_target_and_files_of_ids_and_metadata(build: Buildx) -> None:
    build.write(
        "sub/Other.Dockerfile",
        "FROM busybox AS one\nARG V=0\nRUN echo $V > /v\nFROM one AS two\nRUN echo two > /two\nFROM one\nRUN false\n",
    )
    told = build(
        "-f", "sub/Other.Dockerfile", "--target", "two", "--build-arg", "V=7", "--label", "a=b", "-t", "chosen",
        "--iidfile", "id", "--metadata-file", "metadata.json", ".",
    )  # fmt: skip
    assert "[one 2/2] RUN echo $V" in told and "[two 1/1] RUN echo two" in told and "RUN false" not in told
    assert shown(build, "chosen", "cat", "/v", "/two") == "7\ntwo\n"
    image, label = build.engine.docker("inspect", "-f", '{{.Id}} {{index .Config.Labels "a"}}', "chosen").stdout.split()
    assert label == "b" and (build.context / "id").read_text() == image
    assert json.loads((build.context / "metadata.json").read_text())["containerimage.config.digest"] == image


def test_a_failing_command_is_told_as_docker_tells_it(build: Buildx) -> None:
    build.write("Dockerfile", 'FROM busybox\nRUN echo "words"; exit 42\nRUN never\n')
    told = build.fails(".")
    assert (
        'ERROR: failed to solve: process "/bin/sh -c echo \\"words\\"; exit 42" did not complete successfully: '
        "exit code: 42" in told
    )
    assert "   2 | >>> RUN echo" in told and "words\n" in told and " > [2/3] RUN echo" in told
    build.write("Dockerfile", "FROM busybox\nCOPY missing /\n")
    told = build.fails(".")
    assert "missing" in told and "file does not exist" in told and "   2 | >>> COPY missing /" in told
    build.write("Dockerfile", "FROM busybox\nNOPE x\n")
    assert "dockerfile parse error on line 2: unknown instruction: NOPE" in build.fails(".")
    assert "failed to read dockerfile: open absent: no such file" in build.fails("-f", "absent", ".")


def test_the_ignore_file_and_links_in_the_context(build: Buildx) -> None:
    build.write(".dockerignore", "*.log\n!kept.log\n# comment\nsecret/\n")
    for name in ("a.log", "kept.log", "secret/key", "ä ö.txt", "sub/deep/file"):
        build.write(name, name)
    os.link(build.context / "kept.log", build.context / "linked")
    (build.context / "link").symlink_to("sub/deep")
    os.chmod(build.context / "sub/deep/file", 0o4755)
    build.write("Dockerfile", "FROM busybox\nCOPY . /all\nCOPY link/file /followed\n")
    build("-t", "ignored", ".")
    found = shown(build, "ignored", "find", "/all", "/followed").split("\n")[:-1]
    assert sorted(found) == [
        "/all", "/all/.dockerignore", "/all/Dockerfile", "/all/kept.log", "/all/link", "/all/linked", "/all/sub",
        "/all/sub/deep", "/all/sub/deep/file", "/all/ä ö.txt", "/followed",
    ]  # fmt: skip
    assert shown(build, "ignored", "cat", "/all/linked", "/followed") == "kept.logsub/deep/file"
    assert shown(build, "ignored", "stat", "-c", "%a %u:%g", "/all/sub/deep/file").strip() == "4755 0:0"
    build.write("Dockerfile.dockerignore", "sub\n")
    assert "file does not exist" in build.fails(".")


def test_only_files_that_are_needed_are_sent(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nARG WHAT=small\nCOPY small /\n")
    build.write("small", "s")
    build.write("large", "l" * 3_000_000)
    assert "transferring context: 3" not in build(".")
    build.write("Dockerfile", "FROM busybox\nARG WHAT=large\nCOPY small /\nCOPY $WHAT /\n")
    assert "transferring context: 3" in build("-t", "both", ".")
    assert shown(build, "both", "wc", "-c", "/large").split()[0] == "3000000"


def test_a_secret_is_seen_by_its_step_alone(build: Buildx) -> None:
    build.write("token", "hush")
    build.write(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=secret,id=token,required wc -c < /run/secrets/token > /size\n"
        "RUN --mount=type=secret,id=token,env=TOKEN test $TOKEN = hush && test ! -e /run/secrets/token\n"
        "RUN test ! -e /run/secrets/token\n",
    )
    build("--secret", "id=token,src=token", "-t", "with-secret", ".")
    assert shown(build, "with-secret", "cat", "/size").strip() == "4"
    told = build.run("build", "--secret", "id=env,env=GIVEN", "--no-cache", ".", environment={"GIVEN": "x"})
    assert told.returncode == 1 and "secret token: not found" in told.stderr


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="openssh's agent is not installed")
def test_an_agent_is_forwarded(build: Buildx, tmp_path: Path) -> None:
    path, key = tmp_path / "agent", tmp_path / "key"
    host = build.engine.host
    agent = host.popen("ssh-agent", "-D", "-a", str(path), stdout=subprocess.DEVNULL)
    try:
        wait_for(path.exists, "the agent to listen")
        host.check("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a-key", "-f", str(key))
        host.check("env", f"SSH_AUTH_SOCK={path}", "ssh-add", "-q", str(key))
        with_libraries(build.context / "tools", "/usr/bin/ssh-add")
        build.write(
            "Dockerfile",
            "FROM busybox\nCOPY tools /\nRUN --mount=type=ssh,required /usr/bin/ssh-add -l > /keys\n"
            'RUN test -z "$SSH_AUTH_SOCK"\n',
        )
        build("--ssh", f"default={path}", "-t", "agent", ".")
        assert "a-key (ED25519)" in shown(build, "agent", "cat", "/keys")
        assert "no agent was forwarded" in build.fails("--no-cache", ".")
    finally:
        for pid in host.pids_of("ssh-agent", str(path)):
            os.kill(pid, signal.SIGTERM)
        agent.wait(20)


def with_libraries(root: Path, program: str) -> None:
    """``program`` and what it is linked with, below ``root``."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for name in [program, *(word for line in told.splitlines() for word in line.split() if word.startswith("/"))]:
        place = root / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, place)


def test_named_contexts_replace_images_and_give_files(build: Buildx, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("from beside")
    (tmp_path / "other/.dockerignore").write_text("hidden")
    (tmp_path / "other/hidden").write_text("no")
    build.write("Dockerfile", "FROM base\nCOPY --from=lib . /lib-files\n")
    contexts = ["--build-context", f"lib={tmp_path}/other", "--build-context", "base=docker-image://busybox"]
    build(*contexts, "-t", "named", ".")
    build.write("other.Dockerfile", "FROM busybox AS lib\nFROM busybox\nCOPY --from=lib /bin/sh /x\n")
    assert "the context lib has the name of a stage" in build.fails(*contexts, "-f", "other.Dockerfile", ".")
    assert shown(build, "named", "ls", "-A", "/lib-files").split() == [".dockerignore", "file"]


def test_output_as_files_and_as_a_tar(build: Buildx) -> None:
    build.write("Dockerfile", "FROM scratch\nCOPY a /dir/a\nCOPY big /big\n")
    build.write("a", "a")
    build.write("big", "0123456789" * 100_000)
    (build.context / "link").symlink_to("a")
    before = build.engine.docker("images", "-aq").stdout
    build("-o", "out", ".")
    assert (build.context / "out/dir/a").read_text() == "a"
    assert (build.context / "out/big").stat().st_size == 1_000_000
    build("-o", "type=tar,dest=out.tar", ".")
    with tarfile.open(build.context / "out.tar") as packed:
        assert sorted(m.name for m in packed) == ["big", "dir", "dir/a"]
    assert build.engine.docker("images", "-aq").stdout == before


def test_contexts_from_standard_input_and_dockerfiles_too(build: Buildx) -> None:
    build("-t", "alone", "-", stdin=b"FROM busybox\nRUN echo alone > /alone\n")
    assert shown(build, "alone", "cat", "/alone") == "alone\n"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("Dockerfile", b"FROM busybox\nCOPY f /f\n"), ("f", b"packed")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    build("-t", "packed", "-", stdin=packed.getvalue())
    assert shown(build, "packed", "cat", "/f") == "packed"
    build.write("g", "beside")
    build("-t", "mixed", "-f", "-", ".", stdin=b"FROM busybox\nCOPY g /g\n")
    assert shown(build, "mixed", "cat", "/g") == "beside"


def test_hosts_limits_and_networks_of_steps(build: Buildx) -> None:
    build.write(
        "Dockerfile",
        "FROM busybox\nRUN grep 10.9.8.7 /etc/hosts > /hosts; ulimit -n > /files; df -k /dev/shm | tail -1 > /shm\n",
    )
    build("--add-host", "far:10.9.8.7", "--ulimit", "nofile=77:99", "--shm-size", "3m", "-t", "limits", ".")
    told = shown(build, "limits", "cat", "/hosts", "/files", "/shm").split()
    assert told[:3] == ["10.9.8.7", "far", "77"] and "3072" in told
    build.write("Dockerfile", "FROM busybox\nRUN ls /sys/class/net > /net\n")
    build("--network", "none", "-t", "lonely", ".")
    assert shown(build, "lonely", "cat", "/net") == "lo\n"
    build.write("Dockerfile", "FROM busybox\nRUN --network=host true\n")
    assert "network.host" in build.fails(".")
    build("--allow", "network.host", ".")


def test_cancelling_ends_the_running_step(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nRUN echo begun; sleep 1000\n")
    with open(build.context / "log", "wb") as log:
        client = build.engine.host.popen(*build.command("build", "--progress", "plain", "."), stdout=log, stderr=log)
    label = ("ps", "-aq", "--filter", "label=io.gantry.build")
    try:
        wait_for(lambda: "begun" in (build.context / "log").read_text(), "the step to run", 30)
        assert build.engine.docker(*label).stdout.split()
        for pid in build.engine.host.pids_of("docker-buildx", "build"):
            os.kill(pid, signal.SIGINT)
        assert client.wait(20) != 0
    finally:
        for pid in build.engine.host.pids_of("docker-buildx", "build"):
            os.kill(pid, signal.SIGKILL)
        client.wait(20)
    wait_for(lambda: not build.engine.docker(*label).stdout.split(), "the step's container to go")


@pytest.mark.timeout(400)
def test_the_second_build_of_a_large_context_sends_next_to_nothing(build: Buildx) -> None:
    for number in range(20_000):
        path = build.context / f"d{number // 500}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"content {number}\n" * 10)
    build.write("Dockerfile", "FROM busybox\nCOPY . /all\n")
    first = build("-t", "large", ".")
    assert _sent(first) > 2_000_000
    build.write("d3/f1777", "changed")
    second = build("-t", "large", ".")
    assert _sent(second) < 100_000
    assert shown(build, "large", "cat", "/all/d3/f1777") == "changed"
    third = build(".")
    assert " CACHED" in third and _sent(third) < 100_000


def _sent(told: str) -> int:
    """Bytes of context in a plain log: the last number of the transfer."""
    units = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
    sizes = [line.split("transferring context: ")[1].split()[0] for line in told.splitlines() if "g context: " in line]
    found = 0
    for size in sizes:
        unit = size.lstrip("0123456789.")
        if unit in units:
            found = max(found, int(float(size.removesuffix(unit)) * units[unit]))
    return found


def test_builders_are_listed_and_the_cache_is_shown_and_pruned(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nRUN echo listed > /listed\n")
    build(".")
    listed = build.run("buildx", "ls")
    assert listed.returncode == 0 and "running" in listed.stdout and "linux/" in listed.stdout
    assert build.run("buildx", "inspect").returncode == 0
    usage = build.run("buildx", "du", "--verbose")
    assert usage.returncode == 0 and "RUN echo listed" in usage.stdout
    pruned = build.run("buildx", "prune", "-af")
    assert pruned.returncode == 0 and "Total:" in pruned.stdout
    assert "RUN echo listed" not in build.run("buildx", "du", "--verbose").stdout


def test_what_is_not_built_is_refused_in_words(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\n")
    assert "front end" in build.fails("--build-arg", "BUILDKIT_SYNTAX=example/other", ".")
    build("--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1", ".")
    build.write("Dockerfile", "# syntax=example/other\nFROM busybox\n")
    assert "syntax=example/other is not fetched" in build(".")


def test_targets_of_bake_are_contexts_of_each_other(build: Buildx) -> None:
    bake = {
        "group": {"default": {"targets": ["app"]}},
        "target": {
            "base": {"dockerfile-inline": "FROM busybox\nENV FROM_BASE=yes\nRUN echo base > /b\n"},
            "app": {
                "dockerfile-inline": "FROM mine\nCOPY --from=mine /b /copied\nRUN echo $FROM_BASE > /e\n",
                "contexts": {"mine": "target:base"}, "tags": ["baked"],
            },
        },
    }  # fmt: skip
    build.write("docker-bake.json", json.dumps(bake))
    done = build.run("buildx", "bake", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    assert shown(build, "baked", "cat", "/copied", "/e") == "base\nyes\n"


def test_checks_alone(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nMAINTAINER me\nRUN false\n")
    experimental = {"BUILDX_EXPERIMENTAL": "1"}
    done = build.run("buildx", "build", "--print=lint", ".", environment=experimental)
    assert done.returncode == 0, done.stderr
    assert (
        "WARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/"
        in done.stdout
    )
    assert "2 | >>> MAINTAINER me" in done.stdout
    told = build.run("buildx", "build", "--print=outline", ".", environment=experimental)
    assert told.returncode == 1 and "unsupported request frontend.outline" in told.stderr
    assert "MaintainerDeprecated" in build.fails(".")


def test_the_classic_builder_still_works(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nRUN echo classic\n")
    done = build.run("build", ".", environment={"DOCKER_BUILDKIT": "0"})
    assert done.returncode == 0 and "Successfully built" in done.stdout


def test_pruning_everything_forgets_received_contexts(build: Buildx) -> None:
    build.write("Dockerfile", "FROM busybox\nCOPY f /f\n")
    build.write("f", "0123456789" * 100_000)
    os.utime(build.context / "f", ns=(1, 10**18 + 1))
    assert _sent(build(".")) == _sent(build("--no-cache", ".")) + 1_000_000
    build.engine.docker("builder", "prune", "-af")
    assert _sent(build(".")) == 1_000_000
