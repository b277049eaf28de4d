"""The same requests to Gantry and to Debian's dockerd: every difference in the answers is one that is listed."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase

import pytest

from engine.api.compatibility import DIFFERENCES
from tests.differential.compare import differences, masked
from tests.differential.conftest import WITNESS, Asked
from tests.differential.requests import STEPS

SOMETIMES = frozenset({("GET */stats*", ".body.blkio_stats.*")})
"""Differences that timing decides: whether a container had read from a disk when it was asked."""


@pytest.mark.skipif(shutil.which("dockerd") is None, reason="dockerd is missing: apt-get install docker.io")
@pytest.mark.timeout(180)
def test_answers_differ_only_where_it_is_said(asked: Asked) -> None:
    told: list[str] = []
    used: set[tuple[str, str]] = set()
    both = zip(asked.ours[WITNESS], asked.dockerd.result(), strict=True)
    for (step, our), (_, their) in list(both)[: len(STEPS)]:
        request = f"{step.method} {step.path}"
        for path, mine, other in differences(masked(our._asdict()), masked(their._asdict())):
            listed = [(r, p) for r, p, _ in DIFFERENCES if fnmatchcase(request, r) and fnmatchcase(path, p)]
            used.update(listed[:1])
            told += [] if listed else [f"{request} {path}: {mine!r}, dockerd {other!r}"]
    assert not told, "\n".join(told)
    assert {(r, p) for r, p, _ in DIFFERENCES} - used <= SOMETIMES, "listed, but no longer true"
