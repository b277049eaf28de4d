"""Where the milliseconds of a run go: ``python -m tests.bench.trace [ROUNDS [NETWORK [exec]]]``, as root.

Starts an engine that writes spans (``oci/trace.py``), runs ``docker run --rm busybox true`` so many times, one after
the other, and prints a table like a flame graph: each step below the one that waits for it, with its median start
within the run, its median length and how often it occurs, in the fastest quarter of the runs. What goes on beside the
client is shown too. With ``exec`` it is ``docker exec`` of ``true`` that is followed.
``--write`` puts the table, and that of ``tests.bench.limit``, into ``docs/performance.md``.

Rule: a span's place is where it happened, by the clock: it belongs to the shortest span of a level above it
(``LEVELS``) that contains its middle. Spans are wall time; the spans below one may overlap, because the engine does
things at once.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from oci.trace import VARIABLE
from tests.bench import limit
from tests.bench.peers import Gantry, mount_tmpfs
from tests.support.host import PrivateHost
from tests.support.images import busybox_rootfs

ROOT = "docker"
LEVELS = (
    ("docker",), ("http",), ("engine",), ("network", "call"), ("serve",), ("supervisor", "ttrpc"), ("zygote", "shim"),
    ("runtime",), ("init",),
)  # fmt: skip
"""First words of span names, from the client down: a span lies below one of an earlier level, or of its own word."""

RANK = {word: level for level, words in enumerate(LEVELS) for word in words}

PAGE = Path(__file__).resolve().parents[2] / "docs/performance.md"
LIMIT_ROUNDS = 101
PAUSE = 0.15
"""Seconds between runs, for what goes on after the client has left."""


class Span(NamedTuple):
    """One line of a file; nanoseconds of the monotonic clock."""

    name: str
    start: int
    end: int

    @property
    def word(self) -> str:
        return self.name.partition(" ")[0].rstrip(":")

    @property
    def rank(self) -> int:
        return RANK[self.word]


class Line(NamedTuple):
    """One step of all runs: ``times`` a run, ``start`` and ``length`` in milliseconds."""

    path: tuple[str, ...]
    times: float
    start: float
    length: float


class Traced(PrivateHost):
    """A private host whose programs write spans."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), VARIABLE: str(self.base / "spans")}


def read(directory: Path) -> list[Span]:
    """Every span that was written, in order of their starts."""
    lines = (line for path in directory.glob("*.jsonl") for line in path.read_text().splitlines())
    return sorted((Span(**json.loads(line)) for line in lines), key=lambda span: (span.start, -span.end))


def _contains(above: Span, span: Span) -> bool:
    if above.word == span.word:
        return above.start <= span.start and span.end <= above.end
    return above.rank < span.rank and above.start <= (span.start + span.end) // 2 <= above.end


def placed(run: Span, spans: Sequence[Span]) -> Iterator[tuple[tuple[str, ...], Span]]:
    """The spans that began between this run and the next, each with the names above it and its own."""
    parents: dict[Span, tuple[str, ...]] = {run: (run.name,)}
    yield (run.name,), run
    for span in sorted(spans, key=lambda one: (one.rank, one.start, -one.end)):
        above = [one for one in parents if _contains(one, span)]
        nearest = max(above, key=lambda one: (one.rank, one.start), default=None)
        path = (*(parents[nearest] if nearest else ("afterwards",)), span.name)
        parents[span] = path
        yield path, span


def table(runs: Sequence[Span], spans: Sequence[Span]) -> list[Line]:
    """The steps of the fastest quarter of the runs, parents before their children, each level in order of time."""
    starts: dict[tuple[str, ...], list[float]] = defaultdict(list)
    lengths: dict[tuple[str, ...], list[float]] = defaultdict(list)
    ends = [*(run.start for run in runs[1:]), sys.maxsize]
    fastest = sorted(zip(runs, ends, strict=True), key=lambda one: one[0].end - one[0].start)[: -(-len(runs) // 4)]
    for run, until in fastest:
        within = [span for span in spans if run.start <= span.start < until]
        for path, span in placed(run, within):
            starts[path].append((span.start - run.start) / 1e6)
            lengths[path].append((span.end - span.start) / 1e6)
    lines = [
        Line(path, len(found) / len(fastest), statistics.median(found), statistics.median(lengths[path]))
        for path, found in starts.items()
        if len(found) >= len(fastest) / 2
    ]
    when = {line.path: line.start for line in lines}

    def order(line: Line) -> list[tuple[float, str]]:
        return [(when.get(line.path[: n + 1], 0.0), name) for n, name in enumerate(line.path)]

    return sorted(lines, key=order)


def shown(lines: Iterable[Line]) -> str:
    """The table as text."""
    out = [f"{'step':<74}{'times':>6}{'at ms':>8}{'ms':>8}"]
    for line in lines:
        name = "  " * (len(line.path) - 1) + line.path[-1]
        out.append(f"{name:<74}{line.times:>6.1f}{line.start:>8.1f}{line.length:>8.2f}")
    return "\n".join(out)


def measure(rounds: int, network: str, verb: str) -> list[Line]:
    """Run (or ``exec``) and read."""
    with Traced() as host:
        mount_tmpfs(host, str(host.exec_root))
        directory = host.base / "spans"
        directory.mkdir()
        engine = Gantry(host)
        engine.start()
        engine.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_rootfs())
        command = ["run", "--rm", "--network", network, "busybox", "true"]
        if verb == "exec":
            engine.docker("run", "-d", "--name", "inside", "--network", network, "busybox", "sleep", "1000")
            command = ["exec", "inside", "true"]
        runs = []
        for number in range(rounds + 2):
            began = time.monotonic_ns()
            engine.docker(*command)
            if number >= 2:
                runs.append(Span(f"{ROOT} {verb}", began, time.monotonic_ns()))
            time.sleep(PAUSE)
        spans = read(directory)
        engine.down()
    return table(runs, spans)


def written(name: str, text: str) -> None:
    """Replace the block called ``name`` of the page by ``text``."""
    page = PAGE.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    assert after, f"{PAGE} has no block {name}"
    PAGE.write_text(f"{before}{begin}```\n{text}\n```\n{end}{after}")


def main() -> int:
    """See the module."""
    words = [word for word in sys.argv[1:] if word != "--write"]
    rounds, network, verb = (*words, *("30", "bridge", "run")[len(words) :])
    lines = measure(int(rounds), network, verb)
    print(shown(lines))
    if "--write" in sys.argv:
        written(f"spans of {verb}", shown(lines))
        written("limit", limit.shown(limit.measure(LIMIT_ROUNDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
