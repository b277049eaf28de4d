"""Compiled filters, run call by call in a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import os
import platform
import struct
from pathlib import Path
from typing import Any

import pytest

from runc_py import libseccomp, seccomp
from runc_py.errors import InvalidSpec

x86_64_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers in this test are x86_64's")

X86_64, X86, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
READ, SOCKET, GETPID, PERSONALITY, MOUNT = 0, 41, 39, 135, 165


def decide(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> int:
    """What the kernel would answer for one system call."""
    values = list(arguments) + [0] * (6 - len(arguments))
    data = struct.pack("=IIQ6Q", number, arch, 0, *values)
    accumulator, position = 0, 0
    memory = [0] * 16
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, position * 8)
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        elif code == 0x05:
            position += value
        elif code == 0x54:
            accumulator &= value
        elif code == 0x02:
            memory[value] = accumulator
        elif code == 0x60:
            accumulator = memory[value]
        elif code in (0x15, 0x25, 0x35, 0x45):
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            position += if_true if holds else if_false
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def profile(*syscalls: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(syscalls), **more}


def allow(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}


def argument(index: int, value: int, operator: str, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{operator}"}


@x86_64_only
def test_allow_list_with_default_errno() -> None:
    program = libseccomp.compile_profile(profile(allow("read", "mount", "no_such_call"), defaultErrnoRet=13))
    assert decide(program, READ) == ALLOW
    assert decide(program, GETPID) == 0x00050000 | 13


@x86_64_only
def test_calls_newer_than_the_profile_do_not_exist() -> None:
    program = libseccomp.compile_profile(profile(allow("read", "personality")))
    assert decide(program, GETPID) == EPERM
    assert decide(program, PERSONALITY) == ALLOW
    assert decide(program, PERSONALITY + 1) == ENOSYS


@x86_64_only
def test_other_architectures_only_when_listed() -> None:
    native = libseccomp.compile_profile(profile(allow("read", "mount")))
    assert decide(native, 3, arch=X86) == 0  # the kernel's "kill the thread"
    assert decide(native, 0x40000000 + READ) not in (ALLOW, ENOSYS)
    names = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    every = libseccomp.compile_profile(profile(allow("read", "mount"), architectures=names))
    assert decide(every, 3, arch=X86) == ALLOW
    assert decide(every, 2, arch=X86) == EPERM
    assert decide(every, 400, arch=X86) == ENOSYS
    assert decide(every, 0x40000000 + READ) == ALLOW
    assert decide(every, 0x40000000 + GETPID) == EPERM
    assert decide(every, 0x40000000 + 400) == ENOSYS
    assert decide(every, READ, arch=AARCH64) == 0


@x86_64_only
def test_conditions_on_different_arguments_must_all_hold() -> None:
    rule = allow("socket", args=[argument(0, 2, "EQ"), argument(1, 5, "LT")])
    program = libseccomp.compile_profile(profile(rule))
    assert decide(program, SOCKET, 2, 4) == ALLOW
    assert decide(program, SOCKET, 2, 5) == EPERM
    assert decide(program, SOCKET, 3, 4) == EPERM


@x86_64_only
def test_conditions_on_the_same_argument_are_alternatives() -> None:
    rule = allow("personality", args=[argument(0, 0, "EQ"), argument(0, 8, "EQ")])
    program = libseccomp.compile_profile(profile(rule))
    assert [decide(program, PERSONALITY, value) for value in (0, 8, 9)] == [ALLOW, ALLOW, EPERM]


@x86_64_only
def test_masked_comparison() -> None:
    rule = allow("mount", args=[argument(3, 0xF0, "MASKED_EQ", 0x20)])
    program = libseccomp.compile_profile(profile(rule))
    assert decide(program, MOUNT, 0, 0, 0, 0x2F) == ALLOW
    assert decide(program, MOUNT, 0, 0, 0, 0x3F) == EPERM


@x86_64_only
def test_deny_list_and_own_errno() -> None:
    rule = {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}
    program = libseccomp.compile_profile(profile(rule, default="SCMP_ACT_ALLOW"))
    assert decide(program, MOUNT) == 0x00050000 | 71
    assert decide(program, 9999) == ALLOW


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (profile(default="SCMP_ACT_MAYBE"), "unknown action"),
        (profile({"names": [], "action": "SCMP_ACT_ALLOW"}), r"syscalls\[0\]: names"),
        (profile({"names": ["read"], "action": "ALLOW"}), r'syscalls\[0\]: unknown action "ALLOW"'),
        (profile(allow("read", errnoRet=5)), "errnoRet has no meaning"),
        (profile(allow("read", args=[argument(0, 1, "ABOUT")])), "unknown operator"),
        (profile(allow("read", args=[argument(6, 1, "EQ")])), "calls have six"),
        (profile(allow("read"), architectures=["SCMP_ARCH_VAX"]), "SCMP_ARCH_VAX"),
    ],
)
def test_wrong_profiles_are_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        libseccomp.compile_profile(broken)


def test_flags() -> None:
    assert seccomp.flags_of({}) == 4
    assert seccomp.flags_of({"flags": []}) == 0
    assert seccomp.flags_of({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}) == 3
    with pytest.raises(InvalidSpec, match="FLAG_X"):
        seccomp.flags_of({"flags": ["FLAG_X"]})


def test_cache_hit_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_memory", {})
    wanted = profile(allow("read"))
    first = seccomp.compile_filter(wanted, str(tmp_path / "cache"))

    def refuse(_: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(libseccomp, "compile_profile", refuse)
    monkeypatch.setattr(seccomp, "_memory", {})
    assert seccomp.compile_filter(dict(reversed(wanted.items())), str(tmp_path / "cache")) == first
    assert seccomp.compile_filter(wanted) == first
    with pytest.raises(AssertionError, match="compiled again"):
        seccomp.compile_filter(profile(allow("write")), str(tmp_path / "cache"))


@pytest.mark.parametrize("damage", ["truncated", "writable by others", "changed"])
def test_a_damaged_cache_entry_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    wanted = profile(allow("read"))
    monkeypatch.setattr(seccomp, "_memory", {})
    program = seccomp.compile_filter(wanted, str(tmp_path))
    entry = tmp_path / f"{seccomp.digest(wanted)}.bpf"
    content = entry.read_bytes()
    if damage == "truncated":
        entry.write_bytes(content[:-8])
    elif damage == "changed":
        entry.write_bytes(content[:-1] + b"\xff")
    else:
        entry.chmod(0o666)
    monkeypatch.setattr(seccomp, "_memory", {})
    compiled: list[object] = []
    real = libseccomp.compile_profile

    def noted(profile: Any) -> bytes:
        compiled.append(profile)
        return real(profile)

    monkeypatch.setattr(libseccomp, "compile_profile", noted)
    assert seccomp.compile_filter(wanted, str(tmp_path)) == program
    assert compiled == [wanted]


def test_an_unwritable_cache_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_memory", {})
    assert seccomp.compile_filter(profile(allow("read")), "/proc/no/such/place")


def test_installed_filter_acts_in_this_kernel() -> None:
    program = seccomp.compile_filter(
        profile({"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42}, default="SCMP_ACT_ALLOW")
    )
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            from runc_py.syscalls import PR_SET_NO_NEW_PRIVS, prctl, sethostname

            prctl(PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install(program, seccomp.flags_of({}))
            sethostname("never")
        except OSError as error:
            code = error.errno or 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
