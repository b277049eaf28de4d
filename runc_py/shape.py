"""The shape of ``config.json``: which JSON type stands where.

Rule: this table is the only place that knows types, so that the rest of the runtime can read a checked document without
asking again. ``null`` counts as absent and unknown members are left alone, as the runtime spec asks. Source: the
runtime spec's ``schema/*.json``.
"""

from __future__ import annotations

from runc_py import documents
from runc_py.errors import InvalidSpec
from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TypeAlias

Shape: TypeAlias = "Any"
"""A type (``str``, ``bool``, ``float``), a ``range`` of integers, ``[shape]``, ``{member: shape}``, ``{"*": shape}``.

``"!"`` in an object lists its members that must be there.
"""

U32, I32 = range(0x100000000), range(-0x80000000, 0x80000000)
U64, I64 = range(0x10000000000000000), range(-0x8000000000000000, 0x8000000000000000)
U16 = range(0x10000)
MODE = range(0o200000)

_MAPPINGS = [{"!": ("containerID", "hostID", "size"), "containerID": U32, "hostID": U32, "size": U32}]
HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_HOOKS = [{"!": ("path",), "path": str, "args": [str], "env": [str], "timeout": range(1, 0x80000000)}]
_WEIGHTS = [{"!": ("major", "minor"), "major": I64, "minor": I64, "weight": U16, "leafWeight": U16}]
_RATES = [{"!": ("major", "minor"), "major": I64, "minor": I64, "rate": U64}]
_RESOURCES = {
    "devices": [{"allow": bool, "type": str, "major": I64, "minor": I64, "access": str}],
    "memory": {
        **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), I64),
        "swappiness": U64,
        **dict.fromkeys(("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"), bool),
    },
    "cpu": {
        **dict.fromkeys(("shares", "period", "burst", "realtimePeriod"), U64),
        **dict.fromkeys(("quota", "realtimeRuntime", "idle"), I64),
        "cpus": str,
        "mems": str,
    },
    "pids": {"limit": I64},
    "blockIO": {
        "weight": U16,
        "leafWeight": U16,
        "weightDevice": _WEIGHTS,
        **dict.fromkeys(
            (f"throttle{way}{unit}Device" for way in ("Read", "Write") for unit in ("Bps", "IOPS")), _RATES
        ),
    },
    "hugepageLimits": [{"!": ("pageSize", "limit"), "pageSize": str, "limit": U64}],
    "network": {"classID": U32, "priorities": [{"!": ("name",), "name": str, "priority": U32}]},
    "rdma": {"*": {"hcaHandles": U32, "hcaObjects": U32}},
    "unified": {"*": str},
}
_SECCOMP = {
    "defaultAction": str,
    "defaultErrnoRet": U32,
    "architectures": [str],
    "flags": [str],
    "listenerPath": str,
    "listenerMetadata": str,
    "syscalls": [
        {
            "names": [str],
            "action": str,
            "errnoRet": U32,
            "args": [{"index": U32, "value": U64, "valueTwo": U64, "op": str}],
        }
    ],
}
_CAPABILITIES = {key: [str] for key in ("bounding", "effective", "inheritable", "permitted", "ambient")}
PROCESS: Shape = {
    "terminal": bool,
    "consoleSize": {"height": U32, "width": U32},
    "user": {"uid": U32, "gid": U32, "umask": MODE, "additionalGids": [U32], "username": str},
    "args": [str],
    "env": [str],
    "cwd": str,
    "capabilities": _CAPABILITIES,
    "rlimits": [{"!": ("type", "soft", "hard"), "type": str, "soft": U64, "hard": U64}],
    "noNewPrivileges": bool,
    "apparmorProfile": str,
    "selinuxLabel": str,
    "oomScoreAdj": range(-1000, 1001),
}
_LINUX = {
    "uidMappings": _MAPPINGS,
    "gidMappings": _MAPPINGS,
    "sysctl": {"*": str},
    "resources": _RESOURCES,
    "cgroupsPath": str,
    "namespaces": [{"!": ("type",), "type": str, "path": str}],
    "timeOffsets": {"*": {"secs": I64, "nanosecs": range(1_000_000_000)}},
    "devices": [
        {
            "!": ("path", "type"),
            "path": str,
            "type": str,
            "major": I64,
            "minor": I64,
            "fileMode": U32,
            "uid": U32,
            "gid": U32,
        }
    ],
    "seccomp": _SECCOMP,
    "rootfsPropagation": str,
    "maskedPaths": [str],
    "readonlyPaths": [str],
    "mountLabel": str,
    "personality": {"domain": str, "flags": [str]},
}
SPEC: Shape = {
    "ociVersion": str,
    "root": {"path": str, "readonly": bool},
    "mounts": [
        {
            "!": ("destination",),
            "destination": str,
            "source": str,
            "type": str,
            "options": [str],
            "uidMappings": _MAPPINGS,
            "gidMappings": _MAPPINGS,
        }
    ],
    "process": PROCESS,
    "hostname": str,
    "domainname": str,
    "hooks": dict.fromkeys(HOOK_KINDS, _HOOKS),
    "annotations": {"*": str},
    "linux": _LINUX,
}
RESOURCES: Shape = _RESOURCES
_NAMES = {str: "a string", bool: "true or false", float: "a number"}


def check(value: Any, shape: Shape, path: str = "") -> None:
    """Raise InvalidSpec, with the JSON path, where ``value`` is not of ``shape``."""
    if value is None:
        return
    kind = type(shape)
    if kind is dict:
        _check_members(value, shape, path)
    elif kind is list:
        if type(value) is not list:
            raise InvalidSpec(f"{path}: must be a list")
        for index, item in enumerate(value):
            if item is None:
                raise InvalidSpec(f"{path}[{index}]: must not be null")
            check(item, shape[0], f"{path}[{index}]")
    elif kind is range:
        if type(value) is not int or value not in shape:
            raise InvalidSpec(f"{path}: {value!r:.60} is not an integer between {shape.start} and {shape.stop - 1}")
    elif type(value) is not shape:
        raise InvalidSpec(f"{path}: {value!r:.60} is not {_NAMES[shape]}")
    elif shape is str:
        _check_text(value, path)


def _check_members(value: Any, shape: dict[str, Shape], path: str) -> None:
    if type(value) is not dict:
        raise InvalidSpec(f"{path or 'the document'}: must be an object")
    for name in shape.get("!", ()):
        if value.get(name) is None:
            raise InvalidSpec(f"{path}.{name}: is missing")
    every = shape.get("*")
    for name, item in value.items():
        inner = every or shape.get(name)
        if inner is not None:
            place = f"{path}.{name}" if path else name
            if every is not None:
                place = f'{path}["{name:.60}"]'
                _check_text(name, place)
            check(item, inner, place)


def _check_text(text: str, path: str) -> None:
    if "\0" in text:
        raise InvalidSpec(f"{path}: has a NUL in it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidSpec(f"{path.encode('ascii', 'backslashreplace').decode()}: is not Unicode text") from None


def plain(document: Any) -> Any:
    """The document, or a copy of it without nulls where it has some: C looks for them, Python copies."""
    return without_nulls(document) if "null" in documents.dumps(document) else document


def without_nulls(value: Any) -> Any:
    """A copy without members that are null: they count as absent."""
    if type(value) is dict:
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if type(value) is list:
        return [without_nulls(item) for item in value]
    return value
