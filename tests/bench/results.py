"""Results of benches as data: emitted by every bench, collected into ``docs/benchmarks.json``, the page and the chart.

Rule: ratios are what is promised and compared; absolute figures stand there only to show what they were made of.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

SINK = "GANTRY_BENCH_RESULTS"
"""Environment variable: a file to which ``emit`` appends one JSON object per line."""

WORSE = 4 / 3
"""A ratio that grew by more than this since the committed figures is a regression."""

MISSED = 3
"""Exit status of a bench that ran to its end and missed a goal; 1 is Python's, for one that broke off."""

OURS = "gantry"


class Figure(NamedTuple):
    """One contender's figures in the result's unit; ``samples``: of how many measurements."""

    name: str
    median: float
    low: float
    high: float
    samples: int = 1


class Result(NamedTuple):
    """One measurement of several contenders. ``goals``: contender → the largest ratio of ours to it that is promised.

    For ``higher_is_better`` results the ratio is theirs to ours, so that smaller is always better.
    """

    key: str
    title: str
    unit: str
    figures: tuple[Figure, ...]
    goals: Mapping[str, float] = MappingProxyType({})
    higher_is_better: bool = False
    note: str = ""

    def figure(self, name: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == name), None)

    def ratio(self, name: str) -> float | None:
        """Ours to theirs, by medians; None when one is missing or zero."""
        ours, theirs = self.ours, self.figure(name)
        if ours is None or theirs is None or not ours.median or not theirs.median:
            return None
        value = ours.median / theirs.median
        return 1 / value if self.higher_is_better else value

    @property
    def ours(self) -> Figure | None:
        """Our figure: the contender called ``gantry``, or the first whose name begins so."""
        return self.figure(OURS) or next((f for f in self.figures if f.name.startswith(OURS)), None)

    @property
    def peers(self) -> list[str]:
        ours = self.ours
        return [figure.name for figure in self.figures if figure is not ours]


def figure(name: str, values: Sequence[float], scale: float = 1.0) -> Figure:
    """Median, minimum and maximum of ``values`` times ``scale``."""
    scaled = [value * scale for value in values]
    return Figure(name, statistics.median(scaled), min(scaled), max(scaled), len(scaled))


def emit(result: Result) -> Result:
    """Print the result as a table, and hand it to the collector when there is one."""
    print(table(result), flush=True)
    sink = os.environ.get(SINK)
    if sink:
        with open(sink, "a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(result)) + "\n")
    return result


def table(result: Result) -> str:
    """The result for a terminal."""
    lines = [result.title, f"  {result.unit:<26}{'median':>10}{'min':>10}{'max':>10}{'ratio':>8}{'goal':>7}"]
    for entry in result.figures:
        ratio, goal = result.ratio(entry.name), result.goals.get(entry.name)
        shown = f"{ratio:>8.2f}" if ratio is not None and entry is not result.ours else " " * 8
        wanted = f"{goal:>7.2f}" if goal is not None else ""
        lines.append(f"  {entry.name:<26}{entry.median:>10.1f}{entry.low:>10.1f}{entry.high:>10.1f}{shown}{wanted}")
    return "\n".join(lines)


def missed(result: Result) -> list[str]:
    """Goals that do not hold, as sentences."""
    found = []
    for name, goal in result.goals.items():
        ratio = result.ratio(name)
        if ratio is not None and ratio > goal:
            found.append(f"{result.title}: {ratio:.2f} × {name}, the goal is {goal:.2f}")
    return found


def regressions(old: Iterable[Result], new: Iterable[Result]) -> list[str]:
    """Ratios that grew by more than a third since ``old``, as sentences."""
    before = {result.key: result for result in old}
    found = []
    for result in new:
        for name in result.peers:
            earlier = before[result.key].ratio(name) if result.key in before else None
            now = result.ratio(name)
            if earlier is not None and now is not None and now > earlier * WORSE:
                found.append(f"{result.title}: {now:.2f} × {name}, it was {earlier:.2f}")
    return found


def merged(old: Iterable[Result], new: Sequence[Result]) -> list[Result]:
    """``new`` in the places of the old results with the same keys, what is new besides at the end."""
    fresh = {result.key: result for result in new}
    kept = [fresh.pop(result.key, result) for result in old]
    return [*kept, *fresh.values()]


def _plain(result: Result) -> dict[str, Any]:
    return {**result._asdict(), "goals": dict(result.goals), "figures": [f._asdict() for f in result.figures]}


def parse(data: dict[str, Any]) -> Result:
    """A result from its JSON."""
    figures = tuple(Figure(**entry) for entry in data["figures"])
    return Result(**{**data, "figures": figures})


def load(path: Path) -> list[Result]:
    """Results of an earlier run; none when there was no run."""
    if not path.exists():
        return []
    return [parse(entry) for entry in json.loads(path.read_text())["results"]]


def dump(path: Path, versions: dict[str, str], results: Sequence[Result]) -> None:
    """Write the file that ``load`` reads."""
    path.write_text(json.dumps({"versions": versions, "results": [_plain(r) for r in results]}, indent=1) + "\n")


def page(versions: dict[str, str], results: Sequence[Result], command: str) -> str:
    """``docs/benchmarks.md``."""
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{command}`:",
        "every row measures Gantry and the real peers in one run, in turn, each in a private host of its own on one",
        "machine. Only ratios carry over to other machines: below 1.00 Gantry needs less.",
        "",
        "![ratios](benchmarks.svg)",
        "",
        "| program | version |",
        "|---|---|",
        *(f"| {name} | {version} |" for name, version in versions.items()),
        "",
    ]
    for result in results:
        lines += [
            f"## {result.title}",
            "",
            f"| {result.unit} | median | min | max | samples | ratio | goal |",
            "|---|---|---|---|---|---|---|",
        ]
        for entry in result.figures:
            ratio, goal = result.ratio(entry.name), result.goals.get(entry.name)
            shown = f"{ratio:.2f}" if ratio is not None and entry is not result.ours else ""
            wanted = f"≤ {goal:.2f}" if goal is not None else ""
            spread = f"{entry.median:.1f} | {entry.low:.1f} | {entry.high:.1f} | {entry.samples}"
            lines.append(f"| {entry.name} | {spread} | {shown} | {wanted} |")
        lines += ["", *([result.note, ""] if result.note else [])]
    return "\n".join(lines)


def chart(results: Sequence[Result]) -> str:
    """``docs/benchmarks.svg``: one bar per ratio, a line at 1."""
    rows = [(r.title, name, ratio) for r in results for name in r.peers if (ratio := r.ratio(name)) is not None]
    left, width, height, bar = 430, 420, 24, 14
    scale = width / 1.5
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height * len(rows) + 40}"'
        ' font-family="sans-serif" font-size="12">'
    ]
    for number, (title, name, ratio) in enumerate(rows):
        y = 10 + number * height
        length = min(ratio, 1.5) * scale
        color = "#2a7f62" if ratio <= 1 else "#b3541e"
        label = f"{title} ÷ {name}".replace("&", "&amp;").replace("<", "&lt;")
        out.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{label}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar}" fill="{color}"/>')
        out.append(f'<text x="{left + length + 6:.0f}" y="{y + 12}">{ratio:.2f}</text>')
    one = left + scale
    out.append(f'<line x1="{one:.0f}" y1="4" x2="{one:.0f}" y2="{height * len(rows) + 14}" stroke="#888"/>')
    out.append(f'<text x="{one:.0f}" y="{height * len(rows) + 30}" text-anchor="middle">1.0</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
