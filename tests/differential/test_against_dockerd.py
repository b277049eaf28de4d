"""The same requests to Gantry and to Debian's dockerd: every difference in the answers is one that is listed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest

from engine.api.compatibility import DIFFERENCES
from tests.bench.peers import dockerd
from tests.differential.compare import Client, differences, masked
from tests.differential.requests import STEPS
from tests.support.engine import Engine

SOMETIMES = frozenset({("GET */stats*", ".body.*")})
"""Differences that timing decides: whether a container had read from a disk when it was asked."""


@pytest.mark.root
@pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is missing: apt-get install docker.io")
def test_answers_differ_only_where_it_is_said(make_engine: Callable[..., Engine], busybox_tar: bytes) -> None:
    engine = make_engine()
    told: list[str] = []
    used: set[tuple[str, str]] = set()
    with dockerd() as peer:
        peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
        ours, theirs = Client(engine.socket), Client(peer.host.outside(f"{peer.host.exec_root}/docker.sock"))
        for step in STEPS:
            request = f"{step.method} {step.path}"
            for path, mine, other in differences(masked(ours.ask(step)._asdict()), masked(theirs.ask(step)._asdict())):
                listed = [(r, p) for r, p, _ in DIFFERENCES if fnmatchcase(request, r) and fnmatchcase(path, p)]
                used.update(listed[:1])
                told += [] if listed else [f"{request} {path}: {mine!r}, dockerd {other!r}"]
    assert not told, "\n".join(told)
    assert {(r, p) for r, p, _ in DIFFERENCES} - used <= SOMETIMES, "listed, but no longer true"
