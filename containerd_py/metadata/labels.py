"""Labels and field masks, as every store treats them.

Rule: a mask names ``labels`` (all are replaced) or ``labels.<key>`` (that one is); an empty value removes a label.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence

from containerd_py.interfaces import GC_EXPIRE
from oci.errors import InvalidArgument

LIMIT = 4096
"""Characters a key and its value may have together, as in containerd."""

_FRACTION = re.compile(r"\.(\d{1,9})\d*")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises ``InvalidArgument`` for a label that is too long."""
    for key, value in labels.items():
        if len(key) + len(value) > LIMIT:
            raise InvalidArgument(f"label {key[:64]!r}: key and value are longer than {LIMIT} characters")


def masked(current: Mapping[str, str], new: Mapping[str, str], fields: Sequence[str], what: str) -> dict[str, str]:
    """``current`` with ``new`` laid over it as ``fields`` say; none means all. Raises ``InvalidArgument``."""
    check_labels(new)
    if not fields or "labels" in fields:
        return {key: value for key, value in new.items() if value}
    labels = dict(current)
    for field in fields:
        if not field.startswith("labels."):
            raise InvalidArgument(f"cannot update {field!r} of {what}")
        key = field.removeprefix("labels.")
        if new.get(key):
            labels[key] = new[key]
        else:
            labels.pop(key, None)
    return labels


def nanoseconds(text: str) -> int | None:
    """An RFC 3339 time since the epoch; None when ``text`` is none."""
    fraction = _FRACTION.search(text)
    try:
        moment = datetime.datetime.fromisoformat(_FRACTION.sub("", text.replace("Z", "+00:00").replace("z", "+00:00")))
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return int(moment.timestamp()) * 1_000_000_000 + (int(fraction[1].ljust(9, "0")) if fraction else 0)


def expiry(labels: Mapping[str, str]) -> int | None:
    """When the object with ``labels`` stops to count; None for never. A label that is no time means never too."""
    text = labels.get(GC_EXPIRE)
    return nanoseconds(text) if text else None
