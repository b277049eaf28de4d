"""The events of a transfer (docs/internals.md, "Transfers") as Docker's progress messages.

Rule: layers are shown by twelve digits of their blob's digest; manifests and configs are not shown, as in Docker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from engine.images.records import short_id
from oci.image import Descriptor

Json = dict[str, Any]
Words = Mapping[str, tuple[str, ...]]

BAR = 50
INTERVAL = 0.1
"""Seconds between two messages about the same bytes."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human(count: int) -> str:
    """Bytes with four digits and a decimal unit: ``1.234MB``."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g}{_UNITS[unit]}"


def bar(current: int, total: int) -> str:
    """Docker's text of a progress: ``[==>     ]  1.2MB/3.4MB``."""
    if total <= 0:
        return f"{human(current):>8}" if current > 0 else ""
    done = min(current * 100 // total // 2, BAR)
    numbers = f"{human(current):>8}/{human(total)}" if current <= total else f"{human(current):>8}"
    return f"[{'=' * done}>{' ' * (BAR - done)}] {numbers}"


def message(status: str, blob: str, current: int | None = None, total: int = 0) -> Json:
    """One message about a layer; ``progressDetail`` is empty without numbers."""
    if current is None:
        return {"status": status, "progressDetail": {}, "id": blob}
    detail = {"current": current} | ({"total": total} if total > 0 else {})
    return {"status": status, "progressDetail": detail, "progress": bar(current, total), "id": blob}


def is_layer(media_type: str) -> bool:
    """Whether a blob of this type is a layer."""
    return "layer" in media_type or "rootfs.diff" in media_type


class Translator:
    """State of one transfer: which blobs are layers and what was last said of each.

    That a layer waits is told when the first bytes of any layer move: until then it may turn out to be here. With
    ``unchanged`` (the name points at what it pointed at) layers that are here are not told of at all.
    """

    PULL: ClassVar[Words] = {
        "waiting": ("Pulling fs layer",),
        "downloading": ("Downloading",),
        "downloaded": ("Verifying Checksum", "Download complete"),
        "exists": ("Already exists",),
        "extracting": ("Extracting",),
        "extracted": ("Pull complete",),
        "retrying": ("Retrying in {seconds} second{s}",),
    }
    PUSH: ClassVar[Words] = {
        "waiting": ("Preparing",),
        "uploading": ("Pushing",),
        "uploaded": ("Pushed",),
        "exists": ("Layer already exists",),
        "mounted": ("Mounted from {source}",),
        "retrying": ("Retrying in {seconds} second{s}",),
    }
    LOAD: ClassVar[Words] = {"extracting": ("Loading layer",)}

    def __init__(self, words: Words) -> None:
        self._words = words
        self._layers: dict[str, int] = {}
        self._said: dict[str, tuple[str, float]] = {}
        self._held: dict[str, None] = {}
        self.unchanged = False

    def __call__(self, event: str, name: str, progress: int, total: int, blob: Descriptor | None) -> Iterator[Json]:
        """The messages for one event, none when it is not about a layer or comes too soon after the last."""
        if blob is not None and blob.media_type and is_layer(blob.media_type):
            self._layers[name] = blob.size
        texts = self._words.get(event, ())
        if name not in self._layers or not texts:
            return
        moving = event in ("downloading", "extracting", "uploading")
        said, at = self._said.get(name, ("", 0.0))
        now = time.monotonic()
        if said == event and (not moving or (now - at < INTERVAL and progress < total)):
            return
        self._said[name] = (event, now)
        if event == "waiting":
            self._held[name] = None
            return
        if event == "exists":
            self._held.pop(name, None)
            if self.unchanged:
                return
        else:
            yield from self._waiting()
        for text in texts:
            shown = text.format(seconds=progress, s="" if progress == 1 else "s", source="another repository")
            yield message(shown, short_id(name), progress if moving else None, total or self._layers[name])

    def _waiting(self) -> Iterator[Json]:
        for name in self._held:
            yield from (message(text, short_id(name)) for text in self._words["waiting"])
        self._held.clear()
