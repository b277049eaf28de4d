"""The same storm over ours and over the originals, and a table of what came of it.

Rule: one seed gives every victim the same lives and the same order of kills, as far as it has the same processes.

``python -m tests.chaos.score [--seed N] [--lives N] [--seconds S] [--peers NAME…]``
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.chaos.storm import PEERS, Storm, say, settled
from tests.chaos.victims import victim

SETTLE_SECONDS = 15.0
HEAD = "| | lives | kills | lives gone wrong | calls refused | left behind |\n|---|---|---|---|---|---|"


class Score(NamedTuple):
    """What a storm did to one victim."""

    name: str
    lives: int
    kills: int
    wrong: dict[str, int]
    refused: int
    left: dict[str, int]

    def row(self) -> str:
        """A line of the table."""
        wrong = f"{sum(self.wrong.values())}{_detail(self.wrong)}"
        left = _detail(self.left).strip(" ()") or "nothing"
        return f"| {self.name} | {self.lives} | {self.kills} | {wrong} | {self.refused} | {left} |"


def _detail(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{number} {what}' for what, number in counts.items())})" if counts else ""


def score(name: str, seed: int, lives: int, seconds: float) -> Score:
    """One storm over the peer ``name``."""
    with victim(PEERS[name]) as engine:
        before = engine.state()
        storm = Storm(engine, seed)
        storm.run(lives, seconds)
        left: dict[str, int] = {"that does not answer": 1}
        with contextlib.suppress(AssertionError):
            found = settled(storm, before, SETTLE_SECONDS)
            left = {kind: len(value) if isinstance(value, list) else int(value) for kind, value in found.items()}
        with contextlib.suppress(Exception):
            left.update({what: len(value) for what, value in engine.finish().items() if what not in left})
        wrong = collections.Counter(failure.kind for failure in storm.failures)
        wrong.update(["trouble"] * len(storm.troubles))
        killed = sum(1 for kill in storm.kills if kill.pid)
        refused = sum(life.refusals for life in storm.done)
        return Score(name, len(storm.done), killed, dict(wrong.most_common()), refused, left)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="The same storm over ours and over the originals.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16))
    parser.add_argument("--lives", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    say(f"seed {options.seed}\n\n{HEAD}")
    for name in options.peers:
        say(score(name, options.seed, options.lives, options.seconds).row())
    return 0


if __name__ == "__main__":
    sys.exit(main())
