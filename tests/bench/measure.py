"""Interleaved timings: A B A B …, medians and ratios, because absolute times mean nothing on a shared machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.bench.results import Figure, figure


class Row(NamedTuple):
    """Times of one contender in seconds."""

    name: str
    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    def __str__(self) -> str:
        low, high = min(self.times), max(self.times)
        return f"{self.name:<28}{self.median * 1e3:>9.1f}{low * 1e3:>9.1f}{high * 1e3:>9.1f}"


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 2) -> list[Row]:
    """Run every contender once per round, in turn; the first ``warmup`` rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + warmup):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            if number >= warmup:
                times[name].append(time.perf_counter() - began)
    return [Row(name, tuple(values)) for name, values in times.items()]


def figures(rows: list[Row]) -> tuple[Figure, ...]:
    """``rows`` in milliseconds."""
    return tuple(figure(row.name, row.times, 1e3) for row in rows)
