"""Builds as people start them: gantry, the docker SDK, an agent far away over TLS, and a web server's whole life."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.peers import dockerd
from tests.support.engine import DOCKER, Engine
from tests.support.host import PrivateHost, wait_for
from tests.support.registry import running_registry

TCP = "127.0.0.1:2376"


@pytest.fixture(scope="module")
def builder(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "context"
    root.mkdir()
    (root / "Dockerfile").write_text("FROM busybox\nCOPY f /f\n")
    (root / "f").write_text("x")
    yield root


def test_gantry_build_prints_the_id_and_tags(builder: Engine, context: Path) -> None:
    done = builder.gantry("build", "-t", "one", "-t", "two:2", str(context))
    (image,) = done.stdout.split()
    assert image.startswith("sha256:")
    for name in ("one", "two:2"):
        assert builder.docker("inspect", "-f", "{{.Id}}", name).stdout.strip() == image
    assert "[stage-0 2/2] COPY f /f" in done.stderr
    assert builder.gantry("build", "-q", str(context)).stderr == ""


def test_gantry_build_fails_as_docker_does(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo words; exit 42\n")
    ours = builder.gantry("build", str(context), check=False)
    theirs = builder.host.run("env", "DOCKER_BUILDKIT=0", DOCKER, "-H", builder.url, "build", str(context))
    message = "The command '/bin/sh -c echo words; exit 42' returned a non-zero code: 42"
    assert ours.returncode == theirs.returncode == 42
    assert message in ours.stderr and message in theirs.stderr
    assert " 2 | >>> RUN echo words; exit 42" in ours.stderr and "^^^^" in ours.stderr


def test_dockerfiles_and_contexts_from_standard_input(builder: Engine, context: Path) -> None:
    from_stdin = builder.gantry("build", "-f", "-", str(context), stdin=b"FROM busybox\nCOPY . /all/\n").stdout.strip()
    assert builder.docker("run", "--rm", from_stdin, "ls", "-A", "/all").stdout.split() == ["Dockerfile", "f"]
    alone = builder.gantry("build", "-", stdin=b"FROM busybox\nRUN echo alone > /alone\n").stdout.strip()
    assert builder.docker("run", "--rm", alone, "cat", "/alone").stdout == "alone\n"
    packed = subprocess.run(["tar", "-C", str(context), "-cz", "."], capture_output=True, check=True).stdout
    assert builder.gantry("build", "-", stdin=packed).stdout == builder.gantry("build", str(context)).stdout


def test_a_secret_is_seen_by_its_step_alone(builder: Engine, context: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hush")
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=secret,id=token,required wc -c < /run/secrets/token > /size\n"
        "RUN test ! -e /run/secrets/token\n"
    )
    image = builder.gantry("build", "--secret", f"id=token,src={tmp_path}/token", str(context)).stdout.strip()
    assert builder.docker("run", "--rm", image, "cat", "/size").stdout.strip() == "4"
    builder.docker("save", "-o", str(builder.host.base / "image.tar"), image)
    found = builder.host.run("grep", "-c", "hush", str(builder.host.base / "image.tar"))
    assert found.stdout.strip() == "0"


def test_the_sdk_builds_and_raises_build_errors(builder: Engine, context: Path) -> None:
    script = (
        "import docker\n"
        f"client = docker.DockerClient('{builder.url}', timeout=60)\n"
        f"image, log = client.images.build(path='{context}', tag='sdk:1', labels={{'a': 'b'}})\n"
        "assert image.labels == {'a': 'b'} and image.tags == ['sdk:1'], (image.labels, image.tags)\n"
        "assert any('COPY f /f' in line.get('stream', '') for line in log)\n"
        "import io\n"
        "try:\n"
        "    client.images.build(fileobj=io.BytesIO(b'FROM busybox\\nRUN exit 3\\n'))\n"
        "except docker.errors.BuildError as error:\n"
        "    assert 'non-zero code: 3' in str(error), error\n"
        "try:\n"
        "    client.images.build(fileobj=io.BytesIO(b'FROM busybox\\nNOPE\\n'))\n"
        "except docker.errors.APIError as error:\n"
        "    assert error.status_code == 400 and 'unknown instruction: NOPE' in str(error), error\n"
        "print('fine')\n"
    )
    assert builder.host.check(sys.executable, "-c", script).strip() == "fine"


@pytest.mark.timeout(180)
def test_a_remote_engine_over_tls_builds_cancels_and_pushes(busybox_tar: bytes, context: Path, tmp_path: Path) -> None:
    with PrivateHost() as host:
        certs = tmp_path / "certs"
        host.check(sys.executable, "-m", "cli.main", "certs", "init", "--dir", str(certs), "--host", "127.0.0.1")
        engine = Engine(
            host, "-H", f"unix://{host.exec_root}/gantry.sock", "-H", f"tcp://{TCP}", "--tlsverify",
            "--tlscacert", f"{certs}/ca.pem", "--tlscert", f"{certs}/server-cert.pem",
            "--tlskey", f"{certs}/server-key.pem",
        )  # fmt: skip
        engine.start()
        engine.docker("import", "-", "busybox:latest", stdin=busybox_tar)
        remote = ["env", "DOCKER_BUILDKIT=0", DOCKER, "-H", f"tcp://{TCP}", "--tlsverify"]
        remote += ["--tlscacert", f"{certs}/ca.pem", "--tlscert", f"{certs}/cert.pem", "--tlskey", f"{certs}/key.pem"]
        (context / "big").write_bytes(b"z" * (5 << 20))
        with running_registry(host.base / "registry", host=host) as registry:
            name = f"{registry}/built:1"
            out = host.check(*remote, "build", "-t", name, str(context), timeout=100)
            assert f"Successfully tagged {name}" in out
            host.check(*remote, "push", name, timeout=60)
            assert '"schemaVersion"' in host.check(
                "skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"
            )
        (context / "Dockerfile").write_text("FROM busybox\nRUN sleep 2718.28\n")
        client = host.popen(*remote, "build", str(context), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: host.pids_of("sleep", "2718.28"), "the step to run")
        for pid in host.pids_of("build", str(context)):
            host.run("kill", "-9", host.inner_pid(pid))
        client.wait(10)
        wait_for(lambda: not host.pids_of("sleep", "2718.28"), "the step to be killed")
        wait_for(lambda: not engine.docker("ps", "-aq").stdout, "its container to go")
        engine.down()


@pytest.mark.timeout(240)
def test_a_web_server_from_dockerfile_to_a_golden_image_elsewhere(builder: Engine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nCOPY site /site\nEXPOSE 80\nHEALTHCHECK --interval=1s CMD wget -q -O - http://127.0.0.1/\n"
        'ENTRYPOINT ["httpd", "-f", "-h", "/site"]\n'
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("first\n")
    host = builder.host
    storage = tmp_path / "storage"
    with running_registry(host.base / "golden", host=host, storage=storage) as registry:
        builder.gantry("build", "-t", "web", str(tmp_path))
        builder.docker("run", "-d", "--name", "web", "-p", "8088:80", "web")
        wait_for(lambda: host.run("curl", "-sf", "http://127.0.0.1:8088/").stdout == "first\n", "the page")
        builder.docker("exec", "web", "sh", "-c", "echo golden > /site/index.html")
        golden = f"{registry}/web:golden"
        builder.docker("commit", "-c", "LABEL golden=yes", "web", golden)
        builder.docker("push", golden)
        builder.docker("rm", "-f", "web")
    with dockerd() as peer, running_registry(peer.host.base / "golden", host=peer.host, storage=storage) as registry:
        peer.docker("pull", f"{registry}/web:golden")
        peer.docker("run", "-d", "--name", "web", "--network", "host", f"{registry}/web:golden")
        wait_for(lambda: peer.host.run("curl", "-sf", "http://127.0.0.1/").stdout == "golden\n", "the page")
        peer.docker("rm", "-f", "web")


def test_checks_are_told_and_stop_a_build_that_wants_it(builder: Engine, context: Path) -> None:
    fine = builder.gantry("build", "--check", str(context))
    assert fine.stdout == "Check complete, no warnings found.\n"
    (context / "Dockerfile").write_text("FROM busybox\nENV A=$B P=$PATH\nCMD sleep 1\n")
    done = builder.gantry("build", "--check", str(context), check=False)
    assert done.returncode == 1 and "2 warnings found" in done.stdout, done
    assert "WARNING: UndefinedVar" in done.stdout and "/rule/json-args-recommended/" in done.stdout
    assert " 3 | >>> CMD sleep 1" in done.stdout
    told = builder.gantry("build", str(context)).stderr
    assert "UndefinedVar: Usage of undefined variable '$B' (line 2)" in told
    (context / "Dockerfile").write_text("# check=skip=JSONArgsRecommended;error=true\nFROM busybox\nENV A=$B\n")
    done = builder.gantry("build", str(context), check=False)
    assert done.returncode == 1 and "lint violation found for rules: UndefinedVar" in done.stderr, done
    done = builder.gantry("build", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all", str(context))
    assert "UndefinedVar" not in done.stderr


def layers_of(builder: Engine, name: str) -> list[str]:
    """Diff ids of an image."""
    found: list[str] = json.loads(builder.docker("inspect", "-f", "{{json .RootFS.Layers}}", name).stdout)
    return found


def test_squash_leaves_one_layer_on_the_base(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN head -c 3000000 /dev/urandom > /secret; echo a > /a\n"
        "RUN rm /secret /etc/group\nENV A=1\nCOPY f /f\n"
    )
    plain = builder.gantry("build", "-t", "plain", str(context)).stdout
    builder.gantry("build", "--squash", "-t", "squashed", str(context))
    # The docker client sends --squash to engines that call themselves experimental alone; its SDK asks for nothing.
    client = f"docker.DockerClient('{builder.url}').images.build(path='{context}', squash=True)[0].id"
    by_sdk = builder.host.check(sys.executable, "-c", f"import docker; print({client})")
    assert by_sdk == builder.docker("inspect", "-f", "{{.Id}}", "squashed").stdout != plain
    base = layers_of(builder, "busybox")
    assert len(layers_of(builder, "plain")) == len(base) + 3
    assert layers_of(builder, "squashed")[:-1] == base
    script = "cat /a /f; test ! -e /secret && test ! -e /etc/group && echo $A"
    for name in ("plain", "squashed"):
        assert builder.docker("run", "--rm", name, "sh", "-c", script).stdout == "a\nx1\n"
    sizes = [int(builder.docker("inspect", "-f", "{{.Size}}", name).stdout) for name in ("plain", "squashed")]
    assert sizes[0] - sizes[1] > 2_500_000, "what was removed is in no layer"
    history = builder.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}{{.Comment}}", "squashed").stdout
    assert "ENV A=1" in history and "merge of a build" in history


def test_stderr_of_a_step_is_red_in_the_classic_stream(builder: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo fine; sleep 0.2; echo ${HOME}-bad >&2\n")
    words = ["env", "DOCKER_BUILDKIT=0", DOCKER, "-H", builder.url, "build", "--no-cache", str(context)]
    out = builder.host.check(*words)
    assert "\x1b[91m/root-bad\n\x1b[0m" in out and "\nfine\n" in out
    assert "\x1b" not in builder.gantry("build", "--no-cache", str(context)).stderr


def test_what_a_dockerfile_may_ask_for_is_granted_by_who_builds(builder: Engine, context: Path) -> None:
    step = "FROM busybox\nRUN --security=insecure --network=host grep -q 'CapEff:.*f$' /proc/self/status && ip link\n"
    (context / "Dockerfile").write_text(step)
    done = builder.gantry("build", str(context), check=False)
    assert done.returncode == 1 and "security.insecure is not allowed" in done.stderr, done
    done = builder.gantry("build", "--allow", "security.insecure", str(context), check=False)
    assert done.returncode == 1 and "network.host is not allowed" in done.stderr, done
    builder.gantry("build", "--allow", "security.insecure", "--allow", "network.host", str(context))


def test_the_sdk_takes_steps_from_the_images_it_names_and_no_others(builder: Engine) -> None:
    script = (
        "import docker, io\n"
        f"client = docker.APIClient('{builder.url}', timeout=60)\n"
        "def cached(**options):\n"
        "    file = io.BytesIO(b'FROM busybox\\nENV FOO=bar\\nRUN touch baz\\nRUN touch bax\\n')\n"
        "    stream = client.build(fileobj=file, decode=True, **options)\n"
        "    return sum('Using cache' in chunk.get('stream', '') for chunk in stream)\n"
        "print(cached(tag='from:1'), cached(tag='from:2', cache_from=['from:1']), end=' ')\n"
        "print(cached(tag='from:3', cache_from=['127.0.0.1:9/nosuch']), cached())\n"
    )
    assert builder.host.check(sys.executable, "-c", script).split() == ["0", "3", "0", "3"]
