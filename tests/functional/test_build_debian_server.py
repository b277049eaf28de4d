"""A web server as people build one: Debian from its packages, nginx by apt, published, kept as a golden image.

The image is made, run, changed, committed and pushed here, then pulled and run by docker.io's engine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.peers import dockerd
from tests.support import uplink
from tests.support.engine import Engine
from tests.support.host import PrivateHost, wait_for
from tests.support.registry import running_registry

DOCKERFILE = """\
# check=error=true
FROM debian
RUN apt-get update \\
 && apt-get install -y --no-install-recommends nginx-light \\
 && rm -rf /var/lib/apt/lists/* /var/log/*.log /var/log/apt
COPY --chmod=644 index.html /var/www/html/
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
"""
PROXY = ("--network", "host", "--build-arg", f"http_proxy={uplink.ADDRESS}")
PAGE = "built here\n"
GOLDEN = "golden\n"
SECONDS = 200
"""What packages may take on a slow machine."""


@pytest.fixture(scope="module")
def builder() -> Iterator[Engine]:
    """An engine whose host reaches the distribution's packages, with a Debian image out of them."""
    if reason := uplink.missing():
        pytest.skip(reason)
    with uplink.ProxiedHost() as host, uplink.packages(host):
        engine = Engine(host)
        engine.start()
        gantry(engine, "image", "bootstrap", "-q", "debian")
        yield engine
        engine.down()
        assert engine.host.leftovers() == {}


def gantry(engine: Engine, *words: str) -> str:
    """A command of ours that takes its time."""
    return engine.host.check(sys.executable, "-m", "cli.main", "-H", engine.url, *words, timeout=SECONDS)


def page(host: PrivateHost, port: int) -> str:
    """What the server says; "" while it does not."""
    return host.run("curl", "-sf", "-m", "5", f"http://127.0.0.1:{port}/").stdout


@pytest.mark.timeout(600)
def test_the_same_packages_give_the_same_image(builder: Engine) -> None:
    show = ("inspect", "-f", "{{.Id}} {{json .RootFS.Layers}}", "debian")
    first = builder.docker(*show).stdout
    builder.docker("rmi", "debian")
    gantry(builder, "image", "bootstrap", "-q", "debian")
    assert builder.docker(*show).stdout == first


@pytest.mark.timeout(600)
def test_nginx_on_debian_from_dockerfile_to_a_golden_image_elsewhere(builder: Engine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "index.html").write_text(PAGE)
    storage = tmp_path / "storage"
    host = builder.host
    gantry(builder, "build", "-q", *PROXY, "-t", "web", str(tmp_path))
    assert uplink.ADDRESS not in builder.docker("inspect", "web").stdout
    builder.docker("run", "-d", "--name", "web", "-p", "8088:80", "web")
    wait_for(lambda: page(host, 8088) == PAGE, "the page")
    builder.docker("exec", "web", "sh", "-c", "echo golden > /var/www/html/index.html")
    with running_registry(host.base / "golden", host=host, storage=storage) as registry:
        golden = f"{registry}/web:golden"
        builder.docker("commit", "-c", "LABEL golden=yes", "web", golden)
        builder.docker("push", golden)
    builder.docker("stop", "web")
    assert builder.docker("inspect", "-f", "{{.State.ExitCode}}", "web").stdout == "0\n"
    builder.docker("rm", "web")
    with dockerd() as peer, running_registry(peer.host.base / "golden", host=peer.host, storage=storage) as registry:
        peer.docker("pull", f"{registry}/web:golden")
        peer.docker("run", "-d", "--name", "web", "-p", "8088:80", f"{registry}/web:golden")
        wait_for(lambda: page(peer.host, 8088) == GOLDEN, "the golden page")
        assert peer.docker("inspect", "-f", "{{.Config.Labels.golden}}", "web").stdout == "yes\n"
        peer.docker("rm", "-f", "web")
