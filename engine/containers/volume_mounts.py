"""Mounting a local volume's file system: the driver options ``type``, ``device`` and ``o``.

Rule: options are checked when the volume is made and the file system is mounted when the first container uses it.
Source: Docker's documentation of ``docker volume create`` ("Driver-specific options"), mount(2), nfs(5).
"""

from __future__ import annotations

import ctypes
import os
import socket

from engine.spec.rootfs import SnapshotMount
from oci.errors import Internal, InvalidArgument

OPTIONS = frozenset({"type", "device", "o"})
_NEEDS = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_FLAGS = {
    "ro": (1, True), "rw": (1, False), "nosuid": (2, True), "suid": (2, False), "nodev": (4, True), "dev": (4, False),
    "noexec": (8, True), "exec": (8, False), "sync": (16, True), "async": (16, False), "remount": (32, True),
    "mand": (64, True), "nomand": (64, False), "dirsync": (128, True), "noatime": (1024, True), "atime": (1024, False),
    "nodiratime": (2048, True), "diratime": (2048, False), "bind": (4096, True), "rbind": (4096 | 16384, True),
    "relatime": (1 << 21, True), "norelatime": (1 << 21, False), "strictatime": (1 << 24, True), "defaults": (0, True),
}  # fmt: skip
_READ_ONLY, _BIND, _REMOUNT = 1, 4096, 32
_DETACH = 2
_PRIVATE = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def check_options(name: str, options: dict[str, str] | None) -> None:
    """Raises ``InvalidArgument`` in Docker's words for options the local driver does not take."""
    given = options or {}
    for key in given:
        if key not in OPTIONS:
            raise InvalidArgument(f'create {name}: invalid option: "{key}"')
    for key, needed in _NEEDS.items():
        for other in needed:
            if key in given and other not in given:
                raise InvalidArgument(f'create {name}: missing required option: "{other}"')


def parse_flags(text: str) -> tuple[int, str]:
    """The flags and the file system's own options in an ``o`` value."""
    flags, data = 0, []
    for word in filter(None, text.split(",")):
        known = _FLAGS.get(word)
        if known is None:
            data.append(word)
        else:
            flags = flags | known[0] if known[1] else flags & ~known[0]
    return flags, ",".join(data)


def is_mount_point(path: str) -> bool:
    """Whether something is mounted at ``path``; ``os.path.ismount`` does not see binds within one file system."""
    try:
        return _mount_id(path) != _mount_id(os.path.dirname(os.path.abspath(path)))
    except FileNotFoundError:
        return False


def _mount_id(path: str) -> str:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            return next(line for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(descriptor)


def mount_volume(name: str, options: dict[str, str], target: str) -> None:
    """Mount what ``options`` describe at ``target``; nothing happens when it is mounted already."""
    if is_mount_point(target):
        return
    kind, device = options.get("type", ""), options.get("device", "")
    flags, data = parse_flags(options.get("o", ""))
    if kind.startswith("nfs"):
        data = _with_address(data)
    try:
        _mount(device, target, kind, flags, data)
        if flags & _BIND and flags & _READ_ONLY:
            _mount("", target, "", flags | _REMOUNT, "")
    except OSError as error:
        raise Internal(
            f"failed to mount local volume: mount {device}:{target}, flags: 0x{flags:x}"
            f"{f', data: {data}' if data else ''}: {error.strerror}",
            hint=f"check the options of volume {name}",
        ) from error


def unmount_volume(target: str) -> None:
    """Undo ``mount_volume``. Idempotent."""
    if is_mount_point(target):
        _libc.umount2(os.fsencode(target), _DETACH)


def bind_mount(source: str, target: str) -> None:
    """Bind the tree at ``source`` to ``target``, as a private mount. Raises ``OSError``."""
    _mount(source, target, "", _FLAGS["rbind"][0], "")
    _mount("", target, "", _PRIVATE, "")


def mount_snapshot(mount: SnapshotMount, target: str) -> None:
    """Mount a snapshot (``overlay`` or ``bind``) at ``target``. Raises ``Internal``."""
    flags, data = parse_flags(",".join(mount.options))
    try:
        _mount(mount.source, target, "" if mount.type == "bind" else mount.type, flags, data)
        if mount.type == "bind" and flags & _READ_ONLY:
            _mount("", target, "", flags | _REMOUNT | _BIND, "")
    except OSError as error:
        raise Internal(f"failed to mount a snapshot at {target}: {error.strerror}") from error


def _with_address(data: str) -> str:
    """NFS wants its server as an address: ``addr=name`` is looked up here."""
    words = []
    for word in filter(None, data.split(",")):
        key, _, value = word.partition("=")
        words.append(f"addr={socket.gethostbyname(value)}" if key == "addr" else word)
    return ",".join(words)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode() if data else None
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
