"""Documents that a runtime must refuse before it makes anything: one harm each, put into a good spec."""

from __future__ import annotations

from typing import Any

Harm = tuple[tuple[str | int, ...], Any]
"""Where (the keys that lead there), and what is put there."""

DOCUMENTS: dict[str, Harm] = {
    "args of another type": (("process", "args"), "sh"),
    "an empty args": (("process", "args"), []),
    "a NUL in a word": (("process", "args"), ["tr\0ue"]),
    "a user by name": (("process", "user"), {"uid": "root", "gid": 0}),
    "a mount of another type": (("mounts", 0), "proc"),
    "a relative working directory": (("process", "cwd"), "../../.."),
    "namespaces as an object": (("linux", "namespaces"), {"type": "pid"}),
    "an unknown namespace": (("linux", "namespaces", 0, "type"), "everything"),
    "a limit as a text": (("process", "rlimits"), [{"type": "RLIMIT_CORE", "soft": "x", "hard": "x"}]),
    "a mapping of another type": (("linux", "uidMappings"), [{"containerID": "a", "hostID": [], "size": {}}]),
    "hooks as a list": (("hooks",), [1]),
}


def changed(document: dict[str, Any], harm: Harm) -> dict[str, Any]:
    """The document with the harm done."""
    place, value = harm
    parent: Any = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return document
