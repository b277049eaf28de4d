"""Device rules: what they add up to, what v1 is told, and what the v2 program answers (in an interpreter of ours)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from runc_py import bpf
from runc_py.cgroups import CgroupError
from runc_py.cgroups.devices import Access, Device, legacy_orders, parse_list, play

DENY_ALL = {"allow": False, "access": "rwm"}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}


def rule(allow: bool, kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


def run(program: bytes, kind: str, access: str, major: int, minor: int) -> bool:
    """Interpret a device program for one operation."""
    bits = sum(bpf.ACCESS_BITS[letter] for letter in access)
    context = struct.pack("=III", bits << 16 | bpf.DEVICE_TYPES[kind], major, minor)
    registers = [0] * 11
    position = 0
    while True:
        code, pair, offset, immediate = struct.unpack_from("=BBhi", program, position * 8)
        destination, source = pair & 15, pair >> 4
        value = registers[destination]
        position += 1
        if code == bpf.EXIT:
            return bool(registers[0])
        if code == bpf.LOAD_WORD:
            (registers[destination],) = struct.unpack_from("=I", context, offset)
        elif code == bpf.MOV32_IMMEDIATE:
            registers[destination] = immediate
        elif code == bpf.MOV32_REGISTER:
            registers[destination] = registers[source]
        elif code == bpf.AND32_IMMEDIATE:
            registers[destination] = value & immediate
        elif code == bpf.SHIFT_RIGHT32_IMMEDIATE:
            registers[destination] = value >> immediate
        elif code == bpf.JUMP_EQUAL_IMMEDIATE:
            position += offset if value == immediate else 0
        elif code == bpf.JUMP_NOT_EQUAL_IMMEDIATE:
            position += offset if value != immediate else 0
        elif code == bpf.JUMP_NOT_EQUAL_REGISTER:
            position += offset if value != registers[source] else 0
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def test_nothing_is_allowed_but_the_default_devices_and_mknod() -> None:
    program = bpf.device_program(play([DENY_ALL]))
    assert run(program, "c", "rw", 1, 3)
    assert run(program, "c", "rw", 136, 7)
    assert run(program, "b", "m", 8, 0)
    assert not run(program, "b", "r", 8, 0)
    assert not run(program, "b", "rm", 8, 0)
    assert not run(program, "c", "r", 10, 229)


def test_exception_covers_all_of_the_access_or_nothing() -> None:
    program = bpf.device_program(play([DENY_ALL, rule(True, "b", 8, None, "r")], defaults=False))
    assert run(program, "b", "r", 8, 3)
    assert not run(program, "b", "rw", 8, 3)
    assert not run(program, "b", "r", 9, 3)
    assert not run(program, "c", "r", 8, 3)


def test_denials_from_all_allowed_refuse_any_part() -> None:
    allow_all = {"allow": True, "access": "rwm"}
    program = bpf.device_program(play([allow_all, rule(False, "b", 8, 0, "w")], defaults=False))
    assert run(program, "b", "r", 8, 0)
    assert not run(program, "b", "rw", 8, 0)
    assert run(program, "c", "rwm", 8, 0)


def test_a_later_rule_takes_away_what_an_earlier_gave() -> None:
    access = play([DENY_ALL, rule(True, "c", 10, 229, "rwm"), rule(False, "c", 10, 229, "w")], defaults=False)
    assert access == Access(False, {Device("c", 10, 229): "rm"})
    assert play([DENY_ALL, NULL, DENY_ALL], defaults=False) == Access(False, {})


def test_rules_without_type_mean_everything() -> None:
    assert play([{"allow": True, "access": "rwm"}]).allow_all
    with pytest.raises(CgroupError, match=r"devices\[0\]"):
        play([{"allow": True, "type": "a", "major": 1, "access": "rwm"}])


@pytest.mark.parametrize("bad", [rule(True, "z", 1, 1, "r"), rule(True, "c", 1, 1, "rx")])
def test_wrong_rules_name_their_place(bad: dict[str, Any]) -> None:
    with pytest.raises(CgroupError, match=r"devices\[1\]"):
        play([DENY_ALL, bad])


def test_first_orders_close_before_they_open() -> None:
    orders = legacy_orders("a *:* rwm", play([DENY_ALL, NULL], defaults=False))
    assert orders == [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")]


def test_an_update_only_writes_differences() -> None:
    current = "c 1:3 rwm\nc *:* m\nb 8:0 rw\n"
    wanted = play([DENY_ALL, NULL, rule(True, "c", None, None, "m"), rule(True, "b", 8, 0, "r")], defaults=False)
    assert legacy_orders(current, wanted) == [("devices.deny", "b 8:0 w")]
    assert parse_list(current).exceptions[Device("c", -1, -1)] == "m"


def test_privileged_is_one_order() -> None:
    assert legacy_orders("a *:* rwm", play([{"allow": True, "access": "rwm"}], defaults=False)) == [
        ("devices.allow", "a")
    ]
