"""What may be the name of a container.

Rule: a name becomes a directory below the runtime's root, so it is checked before anything else is done with it.
"""

from __future__ import annotations

from runc_py.errors import InvalidSpec


def container_id(text: str) -> str:
    """``text`` if it can be a container's id: it becomes a directory name. Names with a dot first are the runtime's."""
    problem = ""
    if not text or len(text) > 1024:
        problem = "there must be 1 to 1024 characters"
    elif text.startswith("."):
        problem = "there must be no dot at the beginning"
    elif wrong := [c for c in text if not (c.isascii() and c.isalnum()) and c not in "+-._"]:
        problem = f"invalid character {wrong[0]!r}"
    if problem:
        shown = text[:60].encode("unicode_escape").decode()
        raise InvalidSpec(f'invalid container ID format: "{shown}": {problem} in a container ID')
    return text
