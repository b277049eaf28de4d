"""Device access rules as a value, from the OCI list to what a kernel can be told.

Rule: the OCI list is a sequence of orders; here it is played once into "everything but" or "nothing but" a set of
devices, so that v1 is written without a moment of too much access and v2 becomes a short program. Sources: runtime-spec
``config-linux.md#allowed-device-list``, kernel ``cgroup-v1/devices.rst``.
"""

from __future__ import annotations

from runc_py.cgroups.base import CgroupError
from runc_py.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

WILDCARD = -1


class Device(NamedTuple):
    """A set of devices: ``type`` is ``b`` or ``c``, a number of −1 means all."""

    type: str
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.type} {_number(self.major)}:{_number(self.minor)}"


class Access(NamedTuple):
    """What a cgroup may do: ``allow_all`` decides for devices that are not in ``exceptions`` (device → part of rwm)."""

    allow_all: bool
    exceptions: dict[Device, str]


DEFAULT_ALLOWED: tuple[tuple[Device, str], ...] = (
    (Device("c", WILDCARD, WILDCARD), "m"),
    (Device("b", WILDCARD, WILDCARD), "m"),
    (Device("c", 1, 3), "rwm"),  # null
    (Device("c", 1, 5), "rwm"),  # zero
    (Device("c", 1, 7), "rwm"),  # full
    (Device("c", 1, 8), "rwm"),  # random
    (Device("c", 1, 9), "rwm"),  # urandom
    (Device("c", 5, 0), "rwm"),  # tty
    (Device("c", 5, 2), "rwm"),  # ptmx
    (Device("c", 136, WILDCARD), "rwm"),  # pts/*
)
"""What every container may use whatever its rules say: the devices that runtimes must supply, and mknod."""


def play(rules: Iterable[Mapping[str, Any]], *, defaults: bool = True) -> Access:
    """The effect of ``linux.resources.devices``, then of the default devices; starts from "nothing is allowed"."""
    allow_all = False
    exceptions: dict[Device, str] = {}
    for index, rule in enumerate(rules):
        allow = bool(rule.get("allow"))
        kind = rule.get("type") or "a"
        access = _access(rule.get("access"), index)
        device = Device(kind, _field(rule, "major"), _field(rule, "minor"))
        if kind == "a":
            if (device.major, device.minor) != (WILDCARD, WILDCARD) or access != "rwm":
                raise CgroupError(
                    f'linux.resources.devices[{index}]: type "a" means all devices with all access; '
                    "give type b or c for a narrower rule"
                )
            allow_all, exceptions = allow, {}
            continue
        if kind not in ("b", "c", "u"):
            raise CgroupError(f'linux.resources.devices[{index}].type is "{kind}": expected a, b or c')
        device = device._replace(type="b" if kind == "b" else "c")
        _play_one(exceptions, device, access, add=allow is not allow_all)
    for device, access in DEFAULT_ALLOWED if defaults else ():
        _play_one(exceptions, device, access, add=not allow_all)
    return Access(allow_all, exceptions)


def _play_one(exceptions: dict[Device, str], device: Device, access: str, *, add: bool) -> None:
    before = set(exceptions.get(device, ""))
    letters = before | set(access) if add else before - set(access)
    after = "".join(letter for letter in "rwm" if letter in letters)
    if after:
        exceptions[device] = after
    else:
        exceptions.pop(device, None)


def _access(value: Any, index: int) -> str:
    text = value or "rwm"
    if not isinstance(text, str) or set(text) - set("rwm"):
        raise CgroupError(f'linux.resources.devices[{index}].access is "{value}": expected letters of rwm')
    return "".join(letter for letter in "rwm" if letter in text)


def _field(rule: Mapping[str, Any], name: str) -> int:
    value = rule.get(name)
    return WILDCARD if value is None or int(value) < 0 else int(value)


def _number(value: int) -> str:
    return "*" if value == WILDCARD else str(value)


def legacy_orders(current: str, wanted: Access) -> list[tuple[str, str]]:
    """The writes (file, order) that lead a v1 cgroup whose ``devices.list`` is ``current`` to ``wanted``.

    A cgroup that already denies by default only gets the differences, so that an update never takes away, not even for
    an instant, what the container may keep.
    """
    held = parse_list(current)
    if wanted.allow_all:
        orders = [("devices.allow", "a")]
        return orders + [("devices.deny", f"{device} {access}") for device, access in wanted.exceptions.items()]
    orders = []
    if held.allow_all:
        orders.append(("devices.deny", "a"))
        held = Access(False, {})
    for device, access in wanted.exceptions.items():
        missing = "".join(letter for letter in access if letter not in held.exceptions.get(device, ""))
        if missing:
            orders.append(("devices.allow", f"{device} {missing}"))
    for device, access in held.exceptions.items():
        surplus = "".join(letter for letter in access if letter not in wanted.exceptions.get(device, ""))
        if surplus:
            orders.append(("devices.deny", f"{device} {surplus}"))
    return orders


def parse_list(text: str) -> Access:
    """A v1 ``devices.list`` file. With "all allowed" the kernel does not show the exceptions."""
    exceptions: dict[Device, str] = {}
    for line in text.splitlines():
        kind, numbers, access = line.split()
        if kind == "a":
            return Access(True, {})
        major, minor = (WILDCARD if part == "*" else int(part) for part in numbers.split(":"))
        exceptions[Device(kind, major, minor)] = access
    return Access(False, exceptions)
