"""Times on the API: RFC 3339 with nanoseconds out, seconds or RFC 3339 in.

Rule: inside the engine a time is an integer of nanoseconds since the epoch, 0 for never.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from engine.containers.model import ZERO_TIME
from oci.errors import InvalidArgument

SECOND = 1_000_000_000

_SECONDS = re.compile(r"(-?\d+)(?:\.(\d{1,9}))?")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?)?([Zz]|[+-]\d\d:\d\d)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_last_second = (-1, "")


def rfc3339(at_ns: int) -> str:
    """``at_ns`` as Go's RFC3339Nano in UTC: no trailing zeros; Go's zero time for 0."""
    if at_ns <= 0:
        return ZERO_TIME
    seconds, nanos = divmod(at_ns, SECOND)
    text = _whole_second(seconds)
    return f"{text}.{nanos:09d}".rstrip("0") + "Z" if nanos else f"{text}Z"


def rfc3339_fixed(at_ns: int) -> str:
    """``at_ns`` with all nine digits, as log lines carry it."""
    seconds, nanos = divmod(at_ns, SECOND)
    return f"{_whole_second(seconds)}.{nanos:09d}Z"


def _whole_second(seconds: int) -> str:
    global _last_second
    if _last_second[0] != seconds:
        _last_second = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)))
    return _last_second[1]


def parse_time(text: str, what: str) -> int:
    """Nanoseconds of ``seconds[.nanos]``, RFC 3339, or a duration before now; raises ``InvalidArgument``."""
    if not text or text == "0":
        return 0
    if match := _SECONDS.fullmatch(text):
        fraction = int((match[2] or "0").ljust(9, "0"))
        return int(match[1]) * SECOND + (-fraction if match[1].startswith("-") else fraction)
    if match := _RFC3339.fullmatch(text):
        zone = match[4] or "+00:00"
        clock = match[2] or "00:00:00"
        try:
            base = datetime.fromisoformat(f"{match[1]}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        except ValueError as error:
            raise InvalidArgument(f"invalid value for {what!r}: {error}") from None
        return int(base.timestamp()) * SECOND + int((match[3] or "0").ljust(9, "0"))
    ago = duration_seconds(text)
    if ago is not None:
        return time.time_ns() - int(ago * SECOND)
    raise InvalidArgument(
        f"invalid value for {what!r}: failed to parse value as time or duration: {text!r}",
        hint="use seconds since the epoch, RFC 3339 or a duration such as 10m",
    )


def duration_seconds(text: str) -> float | None:
    """Seconds of a duration as Go writes it (``1m30s``, ``250ms``); None for anything else."""
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        return None
    return float(sum(float(n) * _UNIT[u] for n, u in parts))


def human_duration(seconds: float) -> str:
    """``seconds`` in Docker's words for ``docker ps``: "Less than a second", "About a minute", "5 hours" …"""
    s = int(seconds)
    if s < 1:
        return "Less than a second"
    if s == 1:
        return "1 second"
    if s < 60:
        return f"{s} seconds"
    minutes = s // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    whole = int(seconds // 3600)
    if whole < 24 * 7 * 2:
        return f"{whole // 24} days"
    if whole < 24 * 30 * 2:
        return f"{whole // 24 // 7} weeks"
    if whole < 24 * 365 * 2:
        return f"{whole // 24 // 30} months"
    return f"{whole // 24 // 365} years"


def to_datetime(at_ns: int) -> datetime:
    """``at_ns`` as an aware UTC datetime (microseconds)."""
    return datetime.fromtimestamp(at_ns / SECOND, UTC)
