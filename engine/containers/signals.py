"""Signal names and numbers as Docker takes them: ``9``, ``KILL``, ``SIGKILL``, ``sigrtmin+3``."""

from __future__ import annotations

import signal

from oci.errors import InvalidArgument

RTMIN = 34
RTMAX = 64

BY_NAME: dict[str, int] = {s.name.removeprefix("SIG"): int(s) for s in signal.Signals}
BY_NAME.update({"CLD": 17, "IOT": 6, "POLL": 29, "STKFLT": 16, "RTMIN": RTMIN, "RTMAX": RTMAX})
BY_NAME.update({f"RTMIN+{n}": RTMIN + n for n in range(1, 16)})
BY_NAME.update({f"RTMAX-{n}": RTMAX - n for n in range(1, 15)})


def parse_signal(text: str) -> int:
    """The number of signal ``text``; raises ``InvalidArgument("invalid signal: X")``."""
    raw = text.strip()
    if raw.isdecimal():
        number = int(raw)
        if 0 < number <= RTMAX:
            return number
    else:
        found = BY_NAME.get(raw.upper().removeprefix("SIG"))
        if found is not None:
            return found
    raise InvalidArgument(f"invalid signal: {text}")
