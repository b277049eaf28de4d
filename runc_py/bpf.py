"""The cgroup v2 device controller: an eBPF program, assembled here and loaded by raw ``bpf(2)``.

Rule: a program is data until ``attach``; ``device_program`` is pure and testable without any kernel.
Sources: bpf(2), kernel ``Documentation/bpf/standardization/instruction-set.rst``, ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
import struct
from collections.abc import Iterable

from runc_py.cgroups.devices import WILDCARD, Access, Device
from runc_py.light import os

SYS_BPF = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
    "armv7l": 386,
}

PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, PROG_QUERY = 5, 8, 9, 13, 16
PROG_TYPE_CGROUP_DEVICE = 15
ATTACH_TYPE_CGROUP_DEVICE = 6
F_ALLOW_MULTI, F_REPLACE = 2, 4
MAX_PROGRAMS = 64

DEVICE_TYPES = {"b": 1, "c": 2}
ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
ALL_ACCESS = 7

R0, R1, R2, R3, R4, R5 = range(6)
LOAD_WORD = 0x61  # LDX | MEM | W
MOV32_IMMEDIATE, MOV32_REGISTER = 0xB4, 0xBC
AND32_IMMEDIATE, SHIFT_RIGHT32_IMMEDIATE = 0x54, 0x74
JUMP_EQUAL_IMMEDIATE, JUMP_NOT_EQUAL_IMMEDIATE, JUMP_NOT_EQUAL_REGISTER = 0x15, 0x55, 0x5D
EXIT = 0x95


def instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One 8-byte instruction in this machine's byte order."""
    return struct.pack("=BBhI", code, source << 4 | destination, offset, immediate & 0xFFFFFFFF)


def device_program(access: Access) -> bytes:
    """The program for ``access``: 1 lets an operation pass, 0 refuses it.

    Registers: r2 device type, r3 access asked for, r4 major, r5 minor, from ``struct bpf_cgroup_dev_ctx``.
    """
    program = [
        instruction(LOAD_WORD, R2, R1, 0),
        instruction(MOV32_REGISTER, R3, R2),
        instruction(SHIFT_RIGHT32_IMMEDIATE, R3, immediate=16),
        instruction(AND32_IMMEDIATE, R2, immediate=0xFFFF),
        instruction(LOAD_WORD, R4, R1, 4),
        instruction(LOAD_WORD, R5, R1, 8),
    ]
    for device, letters in access.exceptions.items():
        program += _exception(device, sum(ACCESS_BITS[letter] for letter in letters), access.allow_all)
    program += _answer(access.allow_all)
    return b"".join(program)


def _answer(allow: bool) -> list[bytes]:
    return [instruction(MOV32_IMMEDIATE, R0, immediate=int(allow)), instruction(EXIT)]


def _exception(device: Device, bits: int, allow_all: bool) -> list[bytes]:
    """One block that answers, or falls through to the next when an operation does not match.

    Against "nothing is allowed" the exception must cover all of the access asked for; against "all is allowed" it
    refuses as soon as any of it is denied.
    """
    answer = _answer(not allow_all)
    tests: list[tuple[int, int, int, int]] = [(JUMP_NOT_EQUAL_IMMEDIATE, R2, 0, DEVICE_TYPES[device.type])]
    setup: list[bytes] = []
    if bits != ALL_ACCESS:
        setup = [instruction(MOV32_REGISTER, R1, R3), instruction(AND32_IMMEDIATE, R1, immediate=bits)]
        if allow_all:
            tests.append((JUMP_EQUAL_IMMEDIATE, R1, 0, 0))
        else:
            tests.append((JUMP_NOT_EQUAL_REGISTER, R1, R3, 0))
    if device.major != WILDCARD:
        tests.append((JUMP_NOT_EQUAL_IMMEDIATE, R4, 0, device.major))
    if device.minor != WILDCARD:
        tests.append((JUMP_NOT_EQUAL_IMMEDIATE, R5, 0, device.minor))
    block = list(setup)
    for index, (code, destination, source, immediate) in enumerate(tests):
        to_end = len(tests) - index - 1 + len(answer)
        block.append(instruction(code, destination, source, to_end, immediate))
    return block + answer


def attach_device_program(directory: str, access: Access) -> None:
    """Make ``access`` the rule of the cgroup ``directory``, in one step where a program was there before. OSError."""
    target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened = [target]
    try:
        program = load(device_program(access))
        opened.append(program)
        present = [get_fd_by_id(number) for number in query(target)]
        opened += present
        if len(present) == 1:
            attach(target, program, F_ALLOW_MULTI | F_REPLACE, present[0])
            return
        attach(target, program, F_ALLOW_MULTI)
        for old in present:
            detach(target, old)
    finally:
        _close(opened)


def load(program: bytes) -> int:
    """Have the kernel verify a device program; a descriptor of it. OSError carries the verifier's last words."""
    code = ctypes.create_string_buffer(program, len(program))
    license_name = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_name),
        0,
        0,
        0,
        0,
        0,
        b"gantry_devices",
    )
    try:
        return _bpf(PROG_LOAD, attributes)
    except PermissionError:
        # Before Linux 5.11 programs were charged to RLIMIT_MEMLOCK, which is 64 KiB by default.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return _bpf(PROG_LOAD, attributes)


def attach(target: int, program: int, flags: int, replaced: int = 0) -> None:
    """Attach a device program to the cgroup open as ``target``."""
    _bpf(PROG_ATTACH, struct.pack("=IIIII", target, program, ATTACH_TYPE_CGROUP_DEVICE, flags, replaced))


def detach(target: int, program: int) -> None:
    """Take one device program away from a cgroup."""
    _bpf(PROG_DETACH, struct.pack("=IIII", target, program, ATTACH_TYPE_CGROUP_DEVICE, 0))


def query(target: int) -> list[int]:
    """The ids of the device programs attached to a cgroup itself."""
    ids = (ctypes.c_uint32 * MAX_PROGRAMS)()
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIIIQI", target, ATTACH_TYPE_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), MAX_PROGRAMS), 64
    )
    _bpf_buffer(PROG_QUERY, attributes)
    (count,) = struct.unpack_from("=I", attributes, 24)
    return list(ids[:count])


def get_fd_by_id(number: int) -> int:
    """A descriptor of a loaded program."""
    return _bpf(PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))


def _bpf(command: int, attributes: bytes) -> int:
    return _bpf_buffer(command, ctypes.create_string_buffer(attributes, len(attributes)))


def _bpf_buffer(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf: the number of this system call on {platform.machine()} is not known")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
    answer = int(libc.syscall(number, command, ctypes.addressof(attributes), len(attributes)))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return answer


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
