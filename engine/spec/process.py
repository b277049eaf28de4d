"""The OCI process object: what runs, as whom, with which environment and rights.

Rule: ``build_spec`` and ``build_exec`` share these functions, so an exec differs from init only where Docker says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.containers.config import Ulimit
from engine.spec import defaults
from engine.spec.users import User
from oci.errors import InvalidArgument

_LIMIT_NAMES = "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
LIMITS: frozenset[str] = frozenset(_LIMIT_NAMES.split())
UNLIMITED = (1 << 64) - 1


def environment(own: Iterable[str], *, hostname: str, tty: bool, defaults_wanted: bool = True) -> list[str]:
    """Docker's variables, then ``own``, which wins; an entry without ``=`` takes a variable away."""
    base: list[str] = []
    if defaults_wanted:
        base = [defaults.PATH, f"HOSTNAME={hostname}"]
    if tty:
        base.append("TERM=xterm")
    return merge_environment(base, own)


def merge_environment(base: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """``base`` with ``overrides`` in place of variables of the same name, new ones at the end."""
    variables = {entry.partition("=")[0]: entry for entry in base}
    for entry in overrides:
        name, separator, _ = entry.partition("=")
        if separator:
            variables[name] = entry
        else:
            variables.pop(name, None)
    return list(variables.values())


def user_object(user: User) -> dict[str, Any]:
    """``process.user``; Docker puts the primary group among the additional ones."""
    groups = list(dict.fromkeys((user.gid, *user.groups)))
    return {"uid": user.uid, "gid": user.gid, "additionalGids": groups}


def capability_sets(names: list[str]) -> dict[str, list[str]]:
    """``process.capabilities``: nothing inheritable, nothing ambient."""
    return {"bounding": names, "effective": names, "permitted": names}


def rlimits(ulimits: Iterable[Ulimit]) -> list[dict[str, Any]]:
    """``process.rlimits``; −1 means unlimited. InvalidArgument in Docker's words."""
    result = {}
    for limit in ulimits:
        name = limit.name.lower()
        if name not in LIMITS:
            raise InvalidArgument(f"invalid ulimit type: {limit.name}")
        soft, hard = (value if value >= 0 else UNLIMITED for value in (limit.soft, limit.hard))
        if soft > hard:
            raise InvalidArgument(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
        result[name] = {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard}
    return list(result.values())
