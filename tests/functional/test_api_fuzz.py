"""Random requests on every route: no answer is a 500, none is missing, and the engine keeps nothing of them.

Rule: the table of routes is the engine's own, so that a new endpoint is fuzzed the day it is there.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.engine import Engine
from tests.support.host import REPOSITORY

SECONDS = 20
EXAMPLES = int(os.environ.get("GANTRY_FUZZ") or 400)
"""How many requests; with the variable set they are new ones each time."""
LEFT_OUT = frozenset({"/gantry/down", "/gantry/images/bootstrap"})
"""They end the engine or build a whole distribution, as they should."""

FLAGS = ("all", "force", "v", "stream", "stdout", "stderr", "logs", "size", "link", "digests", "noprune", "detach")
TEXTS = ("name", "path", "signal", "condition", "fromImage", "tag", "repo", "platform", "since", "until", "ps_args")
NUMBERS = ("t", "h", "w", "limit", "tail")
FILTERS = ("label", "name", "id", "status", "dangling", "until", "type", "reference", "nope")
KEYS = (
    "Image", "Cmd", "Env", "Labels", "HostConfig", "Binds", "Mounts", "Memory", "PortBindings", "RestartPolicy", "Name",
    "Driver", "IPAM", "Config", "Options", "Container", "EndpointConfig", "Tty", "Detach", "User", "Healthcheck",
    "NetworkingConfig", "EndpointsConfig", "ExposedPorts", "Volumes", "LogConfig", "Type", "Ulimits", "Devices",
    "Subnet", "username", "password", "serveraddress", "DriverOpts", "WorkingDir", "Entrypoint", "NetworkMode",
    "Target", "Source",
)  # fmt: skip

words = st.one_of(
    st.sampled_from(["busybox", "fuzzed", "missing", "bind", "volume", "/a", "1", "::"]), st.text(max_size=12)
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(KEYS), words), inner, max_size=4)
    ),
    max_leaves=12,
)
creations = st.fixed_dictionaries(
    {"Image": st.just("busybox")}, optional={key: values for key in KEYS if key != "Image"}
)
"""Bodies that get past the first checks of a create."""

queries = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.one_of(st.sampled_from(["0", "1", ""]), words) for name in FLAGS},
        **dict.fromkeys(TEXTS, words),
        **{name: st.one_of(st.integers(-10, 100).map(str), words) for name in NUMBERS},
        "filters": st.one_of(
            words, st.dictionaries(st.sampled_from(FILTERS), st.lists(words, max_size=2), max_size=2).map(json.dumps)
        ),
    },
)


TABLE = """
import asyncio, json, sys, tempfile
from engine.app import App
from engine.config import load

async def routes(directory):
    config = load(["--data-root", directory, "--exec-root", directory, "--config-file", "/dev/null"])
    return [(route.method, route.template) for route in App(config, None).routes()]

with tempfile.TemporaryDirectory() as directory:
    print(json.dumps(asyncio.run(routes(directory))))
"""


class Route(NamedTuple):
    """One endpoint."""

    method: str
    template: str


def routes() -> list[Route]:
    """The engine's table, from a process of its own: an engine brings grpc's threads, and other tests fork this one."""
    made = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    found = (Route(*entry) for entry in json.loads(made.stdout))
    return [route for route in found if route.template not in LEFT_OUT]


def status_of(engine: Engine, method: str, path: str, body: Any) -> int:
    """Send one request; the status of its answer. The connection is dropped there, whatever would follow."""
    connection = http.client.HTTPConnection("engine", timeout=SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(SECONDS)
    connection.sock.connect(engine.socket)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def statistics(engine: Engine) -> tuple[int, int]:
    """(open descriptors, running jobs) of the engine."""
    info = engine.api("GET", "/info")[1]
    return int(info["NFd"]), int(info["NGoroutines"])


@pytest.fixture(scope="module")
def fuzzed(make_engine: Callable[..., Engine]) -> Engine:
    engine = make_engine()
    engine.docker("run", "-d", "--name", "fuzzed", "busybox", "sleep", "1000")
    return engine


def test_random_requests(fuzzed: Engine) -> None:
    table = routes()
    before = statistics(fuzzed)

    bodies = st.one_of(values, creations, st.fixed_dictionaries({"HostConfig": values, "Image": st.just("busybox")}))

    checks = list(HealthCheck)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=checks)
    @given(st.sampled_from(table), words, queries, bodies, st.sampled_from(["", "/v1.24", "/v1.41", "/v1.51"]))
    def request(route: Route, word: str, query: dict[str, str], body: Any, version: str) -> None:
        path = route.template
        for place in ("{id}", "{name}", "{name*}", "{link}", "{checkpoint}"):
            path = path.replace(place, quote(word or "x", safe=""))
        target = f"{version}{path}?{urlencode(query, errors='surrogatepass')}"
        status = status_of(fuzzed, route.method, target, body)
        assert status != 500, f"{route.method} {target} {body!r}\n{fuzzed.log_text()[-3000:]}"

    request()
    assert "Traceback" not in fuzzed.log.read_text(), fuzzed.log_text()
    fuzzed.docker("ps", "--all")
    fuzzed.docker("run", "--rm", "busybox", "true")
    descriptors, jobs = statistics(fuzzed)
    assert descriptors <= before[0] + 8, "descriptors were left open"
    assert jobs <= before[1] + 8, "jobs were left running"
