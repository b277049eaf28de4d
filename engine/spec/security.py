"""``HostConfig.SecurityOpt``: what it may hold and what it means.

Rule: an option that this host cannot honour is refused when it asks for more safety, and ignored when it asks for what
already is (``apparmor=unconfined`` where the kernel has no AppArmor). Source: ``docker run --security-opt`` reference.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable

import msgspec

from oci.errors import InvalidArgument

_BOOLEANS = {"true": True, "false": False}


class SecurityOptions(msgspec.Struct, frozen=True):
    """``seccomp`` is ``""`` (the default), ``unconfined``, ``builtin`` or a profile's JSON text."""

    no_new_privileges: bool = False
    seccomp: str = ""
    apparmor: str = ""
    writable_cgroups: bool | None = None


def parse(options: Iterable[str] | None) -> SecurityOptions:
    """All options in one value; InvalidArgument for what Docker does not know."""
    result = SecurityOptions()
    for option in options or ():
        if option == "no-new-privileges":
            result = msgspec.structs.replace(result, no_new_privileges=True)
            continue
        if option == "disable":
            continue
        key, separator, value = option.partition("=")
        if not separator:
            key, separator, value = option.partition(":")
        if not separator:
            raise InvalidArgument(f"invalid --security-opt 1: {option!r}")
        result = _with(result, key, value, option)
    return result


def _with(result: SecurityOptions, key: str, value: str, option: str) -> SecurityOptions:
    if key == "label":
        return result  # SELinux labels; without SELinux there is nothing to label
    if key == "seccomp":
        return msgspec.structs.replace(result, seccomp=value)
    if key == "no-new-privileges":
        return msgspec.structs.replace(result, no_new_privileges=_boolean(value, option))
    if key == "writable-cgroups":
        return msgspec.structs.replace(result, writable_cgroups=_boolean(value, option))
    if key == "apparmor":
        if value not in ("", "unconfined") and not apparmor_enabled():
            raise InvalidArgument(
                f'apparmor profile "{value}" cannot be applied: this kernel has no AppArmor',
                hint="leave the option out on this host",
            )
        return msgspec.structs.replace(result, apparmor=value)
    raise InvalidArgument(f"invalid --security-opt 2: {option!r}")


def _boolean(value: str, option: str) -> bool:
    if value.lower() not in _BOOLEANS:
        raise InvalidArgument(f"invalid --security-opt 2: {option!r}", hint="the value is true or false")
    return _BOOLEANS[value.lower()]


@functools.cache
def apparmor_enabled() -> bool:
    """Whether the kernel enforces AppArmor profiles."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", encoding="ascii") as file:
            return file.read(1) == "Y" and os.path.isdir("/sys/kernel/security/apparmor")
    except OSError:
        return False
