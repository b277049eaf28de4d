"""A short storm of SIGKILLs: every life as its program says, events in order, databases whole, nothing left behind.

``CHAOS_SECONDS`` says how long new lives begin, ``CHAOS_SEED`` which storm it is. ``python -m tests.chaos.storm`` is
for long ones, ``python -m tests.chaos.score`` for ours beside the originals.
"""

from __future__ import annotations

import os

from tests.chaos.storm import Storm, say, settled
from tests.chaos.victims import Gantry, victim
from tests.chaos.witness import Event, disorder

SEED = int(os.environ.get("CHAOS_SEED", "20"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "12"))
LIVES = 100_000


def told(action: str, ident: str = "a", at: int = 1) -> Event:
    return {"Type": "container", "Action": action, "Actor": {"ID": ident}, "timeNano": at}


def test_what_the_witness_notices() -> None:
    assert disorder([told(action) for action in ("create", "attach", "start", "die", "start", "die", "destroy")]) == []
    assert disorder([told("die", "began before"), told("create"), told("destroy")]) == []
    assert disorder([told("die"), told("die")]) == ["die of a comes after its die"]
    assert disorder([told("create"), told("die")]) == ["die of a comes after its create"]
    assert disorder([told("destroy"), told("start", "b"), told("start")]) == ["start of a comes after its destroy"]
    assert disorder([told("start", at=2), told("die", at=1)]) == ["die of a is older than what was told before it"]


def test_storm() -> None:
    with victim(Gantry) as engine:
        before = engine.state()
        storm = Storm(engine, SEED)
        storm.run(LIVES, SECONDS)
        say(storm.score())
        assert not storm.failures and not storm.troubles, f"{storm.score()}\n{storm.report()}"
        assert storm.heard and not storm.disorder, storm.score()
        assert len(storm.done) > 1 and any(kill.pid for kill in storm.kills)
        assert settled(storm, before) == {}
        assert engine.finish() == {}
