"""Which memory of a fork is its own because it wrote to it: what later forks can copy ahead of time.

Rule: forks of one process have the same layout, so addresses mean the same in all of them. Source: the kernel's
``Documentation/admin-guide/mm/pagemap.rst``.
"""

from __future__ import annotations

import array
import os
from collections.abc import Iterator

Ranges = list[tuple[int, int]]
"""Start and length in bytes, whole pages."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ENTRY = 8
_PRESENT, _EXCLUSIVE = 1 << 63, 1 << 56


def written(pid: int | str = "self") -> Ranges:
    """The private, writable pages that process ``pid`` shares with no other. Raises ``OSError``."""
    found: Ranges = []
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end in _writable(pid):
            pagemap.seek(start // _PAGE * _ENTRY)
            entries = array.array("Q", pagemap.read((end - start) // _PAGE * _ENTRY))
            for number, entry in enumerate(entries):
                if entry & _PRESENT and entry & _EXCLUSIVE:
                    _add(found, start + number * _PAGE)
    return found


def _writable(pid: int | str) -> Iterator[tuple[int, int]]:
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            place, permissions, *_ = line.split(maxsplit=2)
            if permissions == "rw-p":
                start, end = place.split("-")
                yield int(start, 16), int(end, 16)


def _add(found: Ranges, address: int) -> None:
    if found and sum(found[-1]) == address:
        found[-1] = (found[-1][0], found[-1][1] + _PAGE)
    else:
        found.append((address, _PAGE))
