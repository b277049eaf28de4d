"""A short storm of SIGKILLs: every life as its program says, databases whole, nothing left behind.

``CHAOS_SECONDS`` says how long new lives begin, ``CHAOS_SEED`` which storm it is. ``python -m tests.chaos.storm`` is
for long ones, ``python -m tests.chaos.score`` for ours beside the originals.
"""

from __future__ import annotations

import os

from tests.chaos.storm import Storm, say, settled
from tests.chaos.victims import Gantry, victim

SEED = int(os.environ.get("CHAOS_SEED", "20"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "12"))
LIVES = 100_000


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
