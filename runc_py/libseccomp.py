"""The compiler of seccomp filters: libseccomp by ctypes. Loaded only when a profile is new to the cache.

Rule: every number of libseccomp's interface is named here once. Sources: seccomp_init(3), seccomp_rule_add(3),
seccomp_attr_set(3), seccomp_export_bpf(3).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import os

ACT_ERRNO, ACT_TRACE = 0x00050000, 0x7FF00000
ACTIONS: dict[str, int] = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ACT_ERRNO,
    "SCMP_ACT_TRACE": ACT_TRACE,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
PERMISSIVE = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
COMPARISONS: dict[str, int] = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
MASKED_EQ = 7
ATTRIBUTE_NO_NEW_PRIVS, ATTRIBUTE_OPTIMIZE = 3, 8
BINARY_TREE = 2
UNKNOWN_CALL = -1

AUDIT_ARCHES: dict[str, int] = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,  # libseccomp's own token; the kernel reports x86_64 and sets bit 30 of the number
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
}
X32_BIT = 0x40000000


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class Argument(NamedTuple):
    """One condition on an argument; for MASKED_EQ ``value`` is the mask and ``second`` what must be left."""

    position: int
    comparison: int
    value: int
    second: int


class Rule(NamedTuple):
    """``action`` for calls of these names when all ``arguments`` hold."""

    names: tuple[str, ...]
    action: int
    arguments: tuple[Argument, ...]


def action_value(name: Any, errno_ret: Any, path: str) -> int:
    """The kernel's number for an action with its errno or trace value (EPERM when not given)."""
    value = ACTIONS.get(name) if isinstance(name, str) else None
    if value is None:
        raise InvalidSpec(f'{path}: unknown action "{name}"')
    if value in (ACT_ERRNO, ACT_TRACE):
        return value | (errno.EPERM if errno_ret is None else int(errno_ret)) & 0xFFFF
    if errno_ret is not None:
        raise InvalidSpec(f"{path}: errnoRet has no meaning for {name}")
    return value


def rules_of(profile: Mapping[str, Any], default: int) -> list[Rule]:
    """The profile's rules; those that only repeat the default action are left out.

    Several conditions on the same argument of one entry are alternatives, on different arguments all must hold (runc).
    """
    rules: list[Rule] = []
    for index, call in enumerate(profile.get("syscalls") or ()):
        path = f"linux.seccomp.syscalls[{index}]"
        names = tuple(call.get("names") or ())
        if not names:
            raise InvalidSpec(f"{path}: names must not be empty")
        action = action_value(call.get("action"), call.get("errnoRet"), path)
        if action == default:
            continue
        arguments = tuple(_argument(entry, path) for entry in call.get("args") or ())
        if len({argument.position for argument in arguments}) == len(arguments):
            rules.append(Rule(names, action, arguments))
        else:
            rules += [Rule(names, action, (argument,)) for argument in arguments]
    return rules


def _argument(entry: Mapping[str, Any], path: str) -> Argument:
    comparison = COMPARISONS.get(entry.get("op", ""))
    if comparison is None:
        raise InvalidSpec(f'{path}.args: unknown operator "{entry.get("op")}"')
    index = entry.get("index", 0)
    if not 0 <= index <= 5:
        raise InvalidSpec(f"{path}.args: index {index} is not an argument: calls have six")
    return Argument(index, comparison, entry.get("value", 0), entry.get("valueTwo") or 0)


class Library:
    """libseccomp's functions with their types."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        except OSError as error:
            raise RuntimeFailure(
                "the container has a seccomp profile and libseccomp.so.2 is missing: install libseccomp2, "
                "or run without seccomp"
            ) from error
        context, text, unsigned = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
        self.init = _typed(library, "seccomp_init", context, unsigned)
        self.release = _typed(library, "seccomp_release", None, context)
        self.arch_add = _typed(library, "seccomp_arch_add", ctypes.c_int, context, unsigned)
        self.arch_resolve = _typed(library, "seccomp_arch_resolve_name", unsigned, text)
        self.attr_set = _typed(library, "seccomp_attr_set", ctypes.c_int, context, ctypes.c_int, unsigned)
        self.resolve = _typed(library, "seccomp_syscall_resolve_name", ctypes.c_int, text)
        self.resolve_arch = _typed(library, "seccomp_syscall_resolve_name_arch", ctypes.c_int, unsigned, text)
        self.native = _typed(library, "seccomp_arch_native", unsigned)
        self.rule_add = _typed(
            library,
            "seccomp_rule_add_array",
            ctypes.c_int,
            context,
            unsigned,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_void_p,
        )
        self.export = _typed(library, "seccomp_export_bpf", ctypes.c_int, context, ctypes.c_int)


def _typed(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = library[name]
    function.restype = result
    function.argtypes = arguments
    return function


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """The BPF program of an OCI seccomp object, with ENOSYS for calls newer than the profile (see ``newer_calls``)."""
    default = action_value(profile.get("defaultAction"), profile.get("defaultErrnoRet"), "linux.seccomp.defaultAction")
    rules = rules_of(profile, default)
    library = Library()
    context = library.init(default)
    if not context:
        raise RuntimeFailure(f"seccomp: libseccomp refuses the default action {profile.get('defaultAction')}")
    try:
        architectures = _add_architectures(library, context, profile.get("architectures") or ())
        _check(library.attr_set(context, ATTRIBUTE_NO_NEW_PRIVS, 0), "no_new_privs attribute")
        # Before libseccomp 2.5 the attribute is unknown; the filter is then a list and only slower.
        library.attr_set(context, ATTRIBUTE_OPTIMIZE, BINARY_TREE)
        for rule in rules:
            _add_rule(library, context, rule)
        program = _export(library, context)
    finally:
        library.release(context)
    if profile.get("defaultAction") in PERMISSIVE or default == ACT_ERRNO | errno.ENOSYS:
        return program
    names = {name for call in profile.get("syscalls") or () for name in call.get("names") or ()}
    return newer_calls(_latest(library, architectures, names)) + program


def unknown_calls(profile: Mapping[str, Any]) -> list[str]:
    """Names in the profile that libseccomp does not know for this machine, sorted."""
    library = Library()
    names = {name for call in profile.get("syscalls") or () for name in call.get("names") or ()}
    return sorted(name for name in names if library.resolve(name.encode()) == UNKNOWN_CALL)


def _check(code: int, what: str) -> None:
    """libseccomp answers with a negative errno; "is there already" is what was wanted."""
    if code not in (0, -errno.EEXIST):
        raise RuntimeFailure(f"seccomp: {what}: {os.strerror(-code)}")


def _add_architectures(library: Library, context: int, names: Sequence[str]) -> list[tuple[str, int]]:
    """Add each architecture to the native one; (name, libseccomp token) of all that are known by name."""
    added = []
    for name in names:
        token = library.arch_resolve(name.removeprefix("SCMP_ARCH_").lower().encode())
        if not token:
            raise InvalidSpec(f'linux.seccomp.architectures: "{name}" is unknown to libseccomp')
        _check(library.arch_add(context, token), f"architecture {name}")
        added.append((name, int(token)))
    native = int(library.native())
    if native not in (token for _, token in added):
        added += [(name, native) for name, audit in AUDIT_ARCHES.items() if audit == native]
    return added


def _add_rule(library: Library, context: int, rule: Rule) -> None:
    conditions = (_Comparison * len(rule.arguments))(
        *(_Comparison(a.position, a.comparison, a.value, a.second) for a in rule.arguments)
    )
    for name in rule.names:
        number = library.resolve(name.encode())
        if number == UNKNOWN_CALL:
            continue
        code = library.rule_add(context, rule.action, number, len(rule.arguments), ctypes.addressof(conditions))
        _check(code, f"rule for {name}")


def _export(library: Library, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.export(context, fd), "export")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _latest(library: Library, architectures: Iterable[tuple[str, int]], names: Iterable[str]) -> dict[str, int]:
    """Architecture → the highest call number that the profile knows there."""
    latest = {}
    encoded = [name.encode() for name in names]
    for architecture, token in architectures:
        if architecture in AUDIT_ARCHES:
            numbers = (library.resolve_arch(token, name) for name in encoded)
            latest[architecture] = max((number for number in numbers if number >= 0), default=-1)
    return {architecture: number for architecture, number in latest.items() if number >= 0}


LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, JUMP, RETURN = 0x20, 0x15, 0x25, 0x35, 0x05, 0x06
NUMBER_OFFSET, ARCH_OFFSET = 0, 4


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def newer_calls(latest: Mapping[str, int]) -> bytes:
    """A prologue that answers ENOSYS to calls beyond the newest one in the profile, and lets the filter do the rest.

    A C library that tries a new call first falls back to an old one after ENOSYS, but not after EPERM, which is the
    usual default action.
    """
    sections: list[bytes] = []
    refuse = _statement(RETURN, ACT_ERRNO | errno.ENOSYS)
    for architecture, number in latest.items():
        if architecture == "SCMP_ARCH_X32":
            continue  # shares the section of x86_64
        body = [_statement(LOAD, NUMBER_OFFSET)]
        if architecture == "SCMP_ARCH_X86_64":
            x32 = latest.get("SCMP_ARCH_X32")
            if x32 is None:
                # x32 is not the profile's: its numbers go to the filter, which refuses the architecture.
                body.append(_statement(JUMP_GREATER_EQUAL, X32_BIT, 2, 0))
            else:
                body.append(_statement(JUMP_GREATER_EQUAL, X32_BIT, 0, 2))
                body += [_statement(JUMP_GREATER, x32, 0, 3), refuse]
        body += [_statement(JUMP_GREATER, number, 0, 1), refuse]
        block = b"".join(body)
        sections.append(_statement(JUMP_EQUAL, AUDIT_ARCHES[architecture], 0, len(block) // 8 + 1) + block)
    # After its own section an architecture leaves the prologue: the accumulator holds the number, not the architecture.
    program = [_statement(LOAD, ARCH_OFFSET)]
    for index, section in enumerate(sections):
        rest = sum(len(later) // 8 + 1 for later in sections[index + 1 :])
        program.append(section + _statement(JUMP, rest))
    return b"".join(program)
