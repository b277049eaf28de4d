"""A storm: SIGKILLs at random over many container lives at once, and the report of what went wrong.

Rule: everything random comes from the seed (which lives, which victims, which pauses); what the machine makes of it is
in the journals, and a failed life is reported with its own journal, the kills that fell into it and the daemons' words
about it.

``python -m tests.chaos.storm [--seed N] [--lives N] [--seconds S] [--jobs N] [--peer NAME] [--calm]``
runs a long one and prints the score; exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.chaos.lives import Life, Wrong, plan
from tests.chaos.supervisors import Containerd, ContainerdPy
from tests.chaos.victims import Dockerd, Gantry, Victim, victim
from tests.chaos.witness import Listener, disorder
from tests.support.host import PrivateHost

FIRST_PAUSE = 0.3
PAUSES = (0.02, 0.8)
TOGETHER = 0.3
"""How often a kill takes two at once."""

PROGRESS_SECONDS = 10.0

PEERS: dict[str, Callable[[PrivateHost], Victim]] = {
    victim.name: victim for victim in (Gantry, Dockerd, ContainerdPy, Containerd)
}


class Kill(NamedTuple):
    """A kill that was done, in seconds of ``time.monotonic``."""

    at: float
    target: str
    pid: int


class Failure(NamedTuple):
    """A life that went wrong."""

    life: Life
    kind: str
    text: str


class Storm:
    """One run. ``run`` returns when every life has ended."""

    def __init__(self, victim: Victim, seed: int, *, jobs: int = 8, calm: bool = False) -> None:
        self.victim = victim
        self.seed = seed
        self.kills: list[Kill] = []
        self.failures: list[Failure] = []
        self.done: list[Life] = []
        self.troubles: list[str] = []
        self.disorder: list[str] = []
        """What was wrong with the order of events."""

        self.heard = 0
        """Events that were heard."""

        self.progress: Callable[[str], None] | None = None
        self._jobs = jobs
        self._calm = calm
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self._began = 0.0

    def run(self, lives: int, seconds: float) -> None:
        """Live at most ``lives`` lives; none begins after ``seconds``."""
        self._began = time.monotonic()
        workers = [threading.Thread(target=self._work, args=(lives, seconds), daemon=True) for _ in range(self._jobs)]
        killer = threading.Thread(target=self._kill, daemon=True)
        for thread in workers:
            thread.start()
        if not self._calm:
            killer.start()
        listener = Listener(self.victim.api.path) if self.victim.api.path else None
        if listener is not None:
            listener.start()
        told = time.monotonic()
        while any(thread.is_alive() for thread in workers):
            time.sleep(0.1)
            if self.progress is not None and time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                self.progress(f"… {len(self.done)} lives, {len(self.kills)} kills, {len(self.failures)} gone wrong")
        self._over.set()
        if not self._calm:
            killer.join()
        if listener is not None:
            listener.end()
            self.heard = sum(map(len, listener.heard))
            self.disorder = [wrong for heard in listener.heard for wrong in disorder(heard)]

    def _take(self, lives: int, seconds: float) -> int | None:
        with self._lock:
            if self._next >= lives or time.monotonic() - self._began > seconds:
                return None
            self._next += 1
            return self._next

    def _work(self, lives: int, seconds: float) -> None:
        while (number := self._take(lives, seconds)) is not None:
            life = self.victim.life(plan(self.seed, number), self._over)
            try:
                life.run()
            except Wrong as error:
                life.note(f"WRONG: {error}")
                self.failures.append(Failure(life, error.kind, str(error)))
                with contextlib.suppress(Exception):
                    life.remove()
            except Exception as error:
                life.note(f"ERROR: {error!r}")
                self.failures.append(Failure(life, "harness", traceback.format_exc()))
            self.done.append(life)
            self.victim.ids.add(life.id or life.name)

    def _kill(self) -> None:
        chance = random.Random(self.seed)
        self._over.wait(FIRST_PAUSE)
        while not self._over.is_set():
            targets = [target for target in self._targets(chance) if self._killed(target, chance)]
            down = chance.uniform(0, 0.5)
            try:
                if set(self.victim.restarted) & set(targets):
                    time.sleep(down)
                    self.victim.start()
            except Exception as error:
                last = "\n".join(line[:300] for line in self._log_lines()[-30:])
                self.troubles.append(f"after a kill of {' and '.join(targets)}: {error}\n{last}")
                if self.progress is not None:
                    self.progress(self.troubles[-1])
                return
            self._over.wait(chance.uniform(*PAUSES))

    def _killed(self, target: str, chance: random.Random) -> bool:
        if not self.victim.spare(target):
            return False
        pid = self.victim.kill(target, chance.choice)
        self.kills.append(Kill(time.monotonic(), target, pid))
        return True

    def _targets(self, chance: random.Random) -> tuple[str, ...]:
        # The shims are many and there is more to lose in them.
        first = chance.choice((*self.victim.targets, "shim"))
        second = chance.choice(self.victim.targets)
        if chance.random() >= TOGETHER or first == second:
            return (first,)
        return first, second

    def score(self) -> str:
        """What was done and what came of it, in a few lines."""
        kinds = collections.Counter(failure.kind for failure in self.failures)
        kills = collections.Counter(kill.target for kill in self.kills if kill.pid)
        refusals = sum(life.refusals for life in self.done)
        seconds = time.monotonic() - self._began
        lines = [
            f"{self.victim.name}: seed {self.seed}, {len(self.done)} lives in {seconds:.0f} s, "
            f"{sum(kills.values())} kills ({', '.join(f'{n} {t}' for t, n in sorted(kills.items()))})",
            f"  lives gone wrong: {len(self.failures)}"
            + (f" ({', '.join(f'{n} {k}' for k, n in kinds.most_common())})" if kinds else ""),
            f"  calls refused: {refusals}",
        ]
        lines += [f"  trouble: {trouble}" for trouble in self.troubles]
        lines += [f"  events: {wrong}" for wrong in self.disorder]
        return "\n".join(lines)

    def report(self, limit: int = 3) -> str:
        """The first failures, each with its journal and the kills that fell into it."""
        return "\n\n".join(self._story(failure) for failure in self.failures[:limit])

    def _story(self, failure: Failure) -> str:
        life = failure.life
        events = list(life.journal)
        first, last = events[0][0] - 0.5, events[-1][0]
        events += [(k.at, f"    kill -9 {k.target} (pid {k.pid})") for k in self.kills if first <= k.at <= last]
        lines = [f"{life.name} ({life.plan.kind}, {life.id[:12]}): {failure.kind}: {failure.text}"]
        lines += [f"  {at - self._began:8.3f}  {text}" for at, text in _folded(sorted(events))]
        lines += [f"  log: {line}" for line in self._said_about(life)]
        return "\n".join(lines)

    def _said_about(self, life: Life) -> list[str]:
        return [line[:400] for line in self._log_lines() if life.id and life.id in line][-25:]

    def _log_lines(self) -> list[str]:
        lines = []
        for path in (self.victim.log, self.victim.host.data_root / "containerd-py.log"):
            with contextlib.suppress(OSError):
                lines += path.read_text(errors="replace").splitlines()
        return lines


def _folded(events: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without repetitions of a line right behind itself."""
    return [event for number, event in enumerate(events) if not number or event[1] != events[number - 1][1]]


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is there after and was not before, by kind."""
    found = {}
    for kind, value in after.items():
        old = before.get(kind)
        more = [entry for entry in value if entry not in old] if isinstance(value, list) and old is not None else value
        if more and value != old:
            found[kind] = more
    return found


def settled(storm: Storm, before: dict[str, Any], seconds: float = 30.0) -> dict[str, Any]:
    """What an engine without containers has more than before the storm, given some time to tidy up."""
    storm.victim.settle()
    deadline = time.monotonic() + seconds
    while (left := difference(before, storm.victim.state())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def say(text: str) -> None:
    """One line or more to standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Kill an engine's processes at random under load.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16))
    parser.add_argument("--lives", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--reports", type=int, default=5)
    parser.add_argument("--peer", choices=PEERS, default="gantry")
    parser.add_argument("--calm", action="store_true", help="kill nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that the private host goes when a time limit ends this
    with victim(PEERS[arguments.peer]) as engine:
        before = engine.state()
        storm = Storm(engine, arguments.seed, jobs=arguments.jobs, calm=arguments.calm)
        storm.progress = say
        try:
            storm.run(arguments.lives, arguments.seconds)
        finally:
            say(storm.score())
            say(storm.report(arguments.reports))
        left = settled(storm, before)
        say(f"  left behind by lives: {left or 'nothing'}")
        remains = engine.finish()
        say(f"  left behind by the engine: {remains or 'nothing'}")
    return 1 if storm.failures or storm.troubles or storm.disorder or left or remains else 0


if __name__ == "__main__":
    sys.exit(main())
