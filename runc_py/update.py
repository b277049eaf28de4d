"""Options of ``update`` as a ``linux.resources`` object."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from runc_py.errors import InvalidSpec

_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_OPTIONS: tuple[tuple[str, str, str, bool], ...] = (
    ("--cpu-period", "cpu", "period", False),
    ("--cpu-quota", "cpu", "quota", False),
    ("--cpu-burst", "cpu", "burst", False),
    ("--cpu-share", "cpu", "shares", False),
    ("--cpu-rt-period", "cpu", "realtimePeriod", False),
    ("--cpu-rt-runtime", "cpu", "realtimeRuntime", False),
    ("--cpu-idle", "cpu", "idle", False),
    ("--memory", "memory", "limit", True),
    ("--memory-reservation", "memory", "reservation", True),
    ("--memory-swap", "memory", "swap", True),
    ("--kernel-memory", "memory", "kernel", True),
    ("--kernel-memory-tcp", "memory", "kernelTCP", True),
    ("--pids-limit", "pids", "limit", False),
    ("--blkio-weight", "blockIO", "weight", False),
)
"""Option, section, key, whether it takes a size with a unit."""


def update_parser() -> argparse.ArgumentParser:
    """The parser of ``update``."""
    parser = argparse.ArgumentParser(prog="runc-py update", description="change limits", allow_abbrev=False)
    parser.add_argument("-r", "--resources", default="", help='file with a resources object, "-" for stdin')
    for option, section, key, size in _OPTIONS:
        parser.add_argument(option, dest=f"{section}.{key}", type=parse_size if size else int, default=None)
    parser.add_argument("--cpuset-cpus", dest="cpu.cpus", default=None)
    parser.add_argument("--cpuset-mems", dest="cpu.mems", default=None)
    parser.add_argument("--l3-cache-schema", default="", help="line of a resctrl schemata file, such as L3:0=f")
    parser.add_argument("--mem-bw-schema", default="", help="the same for memory bandwidth, such as MB:0=20")
    parser.add_argument("id", metavar="CONTAINER")
    return parser


def parse_size(text: str) -> int:
    """Bytes of ``64m``, ``1g``, ``-1`` …"""
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].lower() in _SIZES else (text, "")
    try:
        return int(digits) * _SIZES.get(unit, 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a size such as 64m') from None


def rdt_of(options: argparse.Namespace) -> dict[str, Any]:
    """The ``linux.intelRdt`` object of the options; empty when they say nothing."""
    said = {"l3CacheSchema": options.l3_cache_schema, "memBwSchema": options.mem_bw_schema}
    return {key: value for key, value in said.items() if value}


def resources_of(options: argparse.Namespace) -> dict[str, Any]:
    """The resources object: a file's, or what the options say."""
    if options.resources:
        try:
            if options.resources == "-":
                loaded = json.load(sys.stdin)
            else:
                with open(options.resources, "rb") as file:
                    loaded = json.load(file)
        except (OSError, ValueError) as error:
            raise InvalidSpec(f"cannot read resources {options.resources}: {error}") from error
        if not isinstance(loaded, dict):
            raise InvalidSpec(f"resources {options.resources}: not a JSON object")
        return loaded
    resources: dict[str, Any] = {}
    for name, value in vars(options).items():
        section, dot, key = name.partition(".")
        if dot and value is not None:
            resources.setdefault(section, {})[key] = value
    return resources
