"""``GET /images/json`` and ``POST /images/prune``: which images the filters mean.

Rule: an unknown filter is an error, as in Docker.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Mapping

from engine.images.catalog import Catalog
from engine.images.changes import duration
from engine.images.records import Image
from engine.images.views import unix_nanoseconds
from oci.errors import InvalidArgument
from oci.reference import Reference

Filters = Mapping[str, list[str]]

LIST_KEYS = frozenset({"dangling", "label", "before", "since", "reference", "until"})
PRUNE_KEYS = frozenset({"dangling", "label", "label!", "until"})

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def boolean(filters: Filters, key: str, default: bool) -> bool:
    """A filter that is yes or no; raises ``InvalidArgument`` in Docker's words."""
    values = filters.get(key) or []
    if not values:
        return default
    if len(values) > 1 or values[0] not in _TRUE | _FALSE:
        raise InvalidArgument(f"invalid filter '{key}={values}'")
    return values[0] in _TRUE


def check_keys(filters: Filters, known: frozenset[str]) -> None:
    """Refuse unknown filters."""
    for key in sorted(filters):
        if key not in known:
            raise InvalidArgument(f"invalid filter '{key}'")


def moment(text: str) -> int:
    """``until``'s value in nanoseconds since the epoch: a Unix time, a date, or how long ago (``24h``)."""
    try:
        return int(float(text) * 10**9)
    except ValueError:
        pass
    full = text if "T" in text else f"{text}T00:00:00"
    stamp = unix_nanoseconds(full if full.count(":") == 2 else f"{full}:00")
    if stamp:
        return stamp
    try:
        return time.time_ns() - duration(text)
    except InvalidArgument:
        raise InvalidArgument(f'failed to parse value as time or duration: "{text}"') from None


def matches_labels(labels: Mapping[str, str], wanted: list[str]) -> bool:
    """Whether all of ``wanted`` (``key`` or ``key=value``) hold."""
    pairs = (entry.partition("=") for entry in wanted)
    return all(k in labels and (not equals or labels[k] == v) for k, equals, v in pairs)


def glob(pattern: str, text: str) -> bool:
    """Go's ``path.Match``: ``*`` and ``?`` stop at a slash."""
    expression = fnmatch.translate(pattern).replace("(?s:", "(?:").replace(".*", "[^/]*")
    return re.fullmatch(expression.removesuffix("\\Z"), text) is not None


def matches_reference(reference: Reference, pattern: str) -> bool:
    """Whether a name, or a name with its tag, matches ``pattern`` in full or familiar form."""
    shown = (reference.familiar, reference.familiar_name, str(reference), reference.name)
    return any(glob(pattern, text) for text in shown)


class Listing:
    """Chooses images by filters."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def choose(self, filters: Filters, *, every: bool = False) -> list[Image]:
        """Images that match, newest first; without ``every`` not the untagged parents of others."""
        check_keys(filters, LIST_KEYS)
        images = await self._catalog.all()
        parents = {image.decoded.parent for image in images}
        dangling = boolean(filters, "dangling", False) if filters.get("dangling") else None
        earliest, latest = await self._bounds(filters)
        chosen = []
        for image in images:
            created = unix_nanoseconds(image.decoded.config.created)
            if (latest is not None and created >= latest) or (earliest is not None and created <= earliest):
                continue
            if not matches_labels(image.decoded.config.config.labels or {}, filters.get("label", [])):
                continue
            if image.dangling and image.id in parents and not every:
                continue
            if dangling is not None and (image.dangling and image.id not in parents) != dangling:
                continue
            kept = self._by_reference(image, filters.get("reference", []))
            if kept is not None:
                chosen.append(kept)
        return sorted(chosen, key=lambda i: (unix_nanoseconds(i.decoded.config.created), i.id), reverse=True)

    async def _bounds(self, filters: Filters) -> tuple[int | None, int | None]:
        async def created(text: str) -> int:
            return unix_nanoseconds((await self._catalog.find(text)).decoded.config.created)

        latest = [await created(text) for text in filters.get("before", [])]
        latest += [moment(text) for text in filters.get("until", [])]
        earliest = [await created(text) for text in filters.get("since", [])]
        return max(earliest, default=None), min(latest, default=None)

    @staticmethod
    def _by_reference(image: Image, patterns: list[str]) -> Image | None:
        """``image`` with only the names that match; None when none does."""
        if not patterns:
            return image
        kept = tuple(
            record
            for record in image.records
            if record.reference is not None and any(matches_reference(record.reference, p) for p in patterns)
        )
        return Image(image.decoded, kept) if kept else None
