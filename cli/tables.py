"""Aligned columns, human sizes and ages, as Docker prints them."""

from __future__ import annotations

import time
from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, three blanks apart."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *rows)
    )


def size(count: int) -> str:
    """Bytes with a decimal unit and at most four digits: ``1.24MB``."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g}{_UNITS[unit]}" if value < 1000 else f"{value:.0f}{_UNITS[unit]}"


def age(since: float, now: float | None = None) -> str:
    """How long ago ``since`` (unix seconds) was: ``3 minutes``."""
    seconds = int((time.time() if now is None else now) - since)
    if seconds < 1:
        return "Less than a second"
    for limit, length, name in (
        (60, 1, "second"),
        (3600, 60, "minute"),
        (48 * 3600, 3600, "hour"),
        (14 * 86400, 86400, "day"),
        (60 * 86400, 7 * 86400, "week"),
        (730 * 86400, 30 * 86400, "month"),
    ):
        if seconds < limit:
            count = seconds // length
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{seconds // (365 * 86400)} years"
