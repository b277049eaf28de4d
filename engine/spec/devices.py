"""Devices of a container: nodes to make and the rules that let it use them.

Rule: a device is what it is on the host at start; links are followed, directories stand for the devices inside.
Source: ``docker run --device`` and ``--device-cgroup-rule`` reference, runtime-spec ``config-linux.md#devices``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from engine.containers.config import DeviceMapping, HostConfig
from engine.spec.defaults import device_rules
from oci.errors import InvalidArgument

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
_SKIPPED = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"})
"""What a privileged container does not copy from the host's ``/dev``: its own instances are there."""

ALL_ACCESS = "rwm"


def build(host: HostConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(``linux.devices``, ``linux.resources.devices``) for a container."""
    if host.device_requests:
        request = host.device_requests[0]
        raise InvalidArgument(
            f'could not select device driver "{request.get("Driver") or ""}" '
            f"with capabilities: {request.get('Capabilities') or []}"
        )
    if host.privileged:
        nodes = list(_nodes_below("/dev", "/dev", _SKIPPED))
        for mapping in host.devices or ():
            if mapping.path_on_host != mapping.path_in_container:
                nodes += mapped(mapping)
        return nodes, [*device_rules(), {"allow": True, "access": ALL_ACCESS}]
    nodes, rules = [], device_rules()
    for mapping in host.devices or ():
        found = mapped(mapping)
        nodes += found
        rules += [_allow(node, mapping.cgroup_permissions or ALL_ACCESS) for node in found]
    return nodes, [*rules, *parse_rules(host.device_cgroup_rules or ())]


def mapped(mapping: DeviceMapping) -> list[dict[str, Any]]:
    """The nodes of one ``--device``: one, or all below a directory."""
    source = os.path.realpath(mapping.path_on_host)
    target = mapping.path_in_container or mapping.path_on_host
    try:
        status = os.stat(source)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(
            f'error gathering device information while adding custom device "{mapping.path_on_host}": {reason}'
        ) from None
    if stat.S_ISDIR(status.st_mode):
        nodes = list(_nodes_below(source, target, frozenset()))
    else:
        nodes = [node] if (node := _node(target, status)) is not None else []
    if not nodes:
        raise InvalidArgument(
            f'error gathering device information while adding custom device "{mapping.path_on_host}": not a device node'
        )
    return nodes


def _nodes_below(source: str, target: str, skipped: frozenset[str]) -> Iterator[dict[str, Any]]:
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = f"{target}/{entry.name}"
            if entry.is_symlink() or entry.name in skipped:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _nodes_below(entry.path, path, frozenset())
                continue
            try:
                node = _node(path, entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            if node is not None:
                yield node


def _node(path: str, status: os.stat_result) -> dict[str, Any] | None:
    if stat.S_ISBLK(status.st_mode):
        kind = "b"
    elif stat.S_ISCHR(status.st_mode):
        kind = "c"
    else:
        return None
    return {
        "path": path,
        "type": kind,
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _allow(node: dict[str, Any], access: str) -> dict[str, Any]:
    return {"allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": access}


def parse_rules(texts: Iterable[str]) -> list[dict[str, Any]]:
    """``--device-cgroup-rule`` such as ``c 42:* rmw``."""
    rules: list[dict[str, Any]] = []
    for text in texts:
        match = _RULE.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"invalid device cgroup rule format: '{text}'")
        kind, major, minor, access = match.groups()
        rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        for key, value in (("major", major), ("minor", minor)):
            if value != "*":
                rule[key] = int(value)
        rules.append(rule)
    return rules
