"""What may be the name of a container.

Rule: a name becomes a directory below the runtime's root, so it is checked before anything else is done with it.
"""

from __future__ import annotations

from runc_py.errors import InvalidSpec


def container_id(text: str) -> str:
    """``text`` if it can be a container's id: it becomes a directory name. Names with a dot first are the runtime's."""
    if not text or len(text) > 1024 or text.startswith(".") or not all(c.isalnum() or c in "+-._" for c in text):
        raise InvalidSpec(f'invalid container ID format: "{text}"')
    if not text.isascii():
        raise InvalidSpec(f'invalid container ID format: "{text}"')
    return text
