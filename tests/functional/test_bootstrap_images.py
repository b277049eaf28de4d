"""Base images without a registry: made here, run here, the same every time."""

from __future__ import annotations

import pytest

from tests.support.engine import Engine


def test_busybox_runs_and_is_the_same_each_time(engine: Engine) -> None:
    engine.gantry("image", "bootstrap", "-t", "made:1", "busybox")
    engine.gantry("image", "bootstrap", "-q", "-t", "made:2", "busybox")
    ids = {engine.docker("image", "inspect", "-f", "{{.Id}}", f"made:{n}").stdout for n in (1, 2)}
    assert len(ids) == 1
    assert engine.docker("run", "--rm", "made:1", "id", "-un").stdout == "root\n"
    assert engine.docker("run", "--rm", "made:1", "sh", "-c", "echo $((6*7))").stdout == "42\n"
    engine.docker("rmi", "made:1", "made:2")


def test_an_unknown_recipe_is_refused_with_the_known_ones(engine: Engine) -> None:
    done = engine.gantry("image", "bootstrap", "plan9", check=False)
    assert done.returncode == 1
    assert "bootstrap knows busybox" in done.stderr


def test_without_a_network_it_says_so(engine: Engine) -> None:
    done = engine.gantry("image", "bootstrap", "debian", check=False)
    if done.returncode == 0:
        pytest.skip("this private host reaches a package source")
    assert "cannot read the package lists" in done.stderr or "no package source" in done.stderr
