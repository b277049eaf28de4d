"""One short storm of SIGKILLs: every life as its program says, databases whole, nothing left behind.

It runs where it is asked for: ``CHAOS_SECONDS`` says how long new lives begin (25 is a short one), ``CHAOS_SEED``
which one it is. About every second one still fails: a shim or a container's directory is left over, or, rarely, a start
that was answered with an error had run after all. Each takes several kills within a second. ``python -m
tests.chaos.storm`` is for long ones and for the peer.
"""

from __future__ import annotations

import os

import pytest

from tests.chaos.storm import Storm, say, settled
from tests.chaos.victims import Gantry, victim

SEED = int(os.environ.get("CHAOS_SEED", "20"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "25"))
LIVES = 100_000


@pytest.mark.skipif("CHAOS_SECONDS" not in os.environ, reason="a storm is asked for: CHAOS_SECONDS=25")
def test_storm() -> None:
    with victim(Gantry) as engine:
        before = engine.state()
        storm = Storm(engine, SEED)
        storm.run(LIVES, SECONDS)
        say(storm.score())
        assert not storm.failures and not storm.troubles, f"{storm.score()}\n{storm.report()}"
        assert len(storm.done) > 1 and any(kill.pid for kill in storm.kills)
        assert settled(storm, before) == {}
        assert engine.finish() == {}
