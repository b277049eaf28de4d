"""Filling a new volume with what the image has at the volume's place.

Rule: the image's tree is hostile. It is walked by a process of its own that has the snapshot mounted in a mount
namespace of its own and has made it its root, so that no link in it can lead to the host.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence

from engine.containers.model import MountPoint, RootfsMount
from engine.spec.rootfs import layers_of
from oci.errors import Internal

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REC, _MS_PRIVATE, _MS_BIND = 1, 16384, 1 << 18, 4096


async def fill(rootfs: Sequence[RootfsMount], points: Sequence[MountPoint]) -> None:
    """Copy the image's content into the volumes of ``points`` that ask for it. Raises ``Internal``."""
    layers = layers_of(rootfs)
    wanted = [(p.destination, p.source) for p in points if p.copy_up]
    wanted = [pair for pair in wanted if any(os.path.lexists(layer + pair[0]) for layer in layers)]
    if not wanted:
        return
    order = json.dumps({"layers": layers, "copies": wanted}).encode()
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await worker.communicate(order)
    if worker.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise Internal(f"cannot copy the image's files into a volume: {lines[-1] if lines else worker.returncode}")


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _enter(layers: list[str]) -> None:
    """Make the layers, read-only, the root of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    _call(libc.unshare(_CLONE_NEWNS), "unshare")
    _call(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make mounts private")
    target = b"/mnt" if os.path.isdir("/mnt") else b"/tmp"
    if len(layers) == 1:
        _call(libc.mount(os.fsencode(layers[0]), target, None, _MS_BIND, None), "bind the root file system")
    else:
        lower = ":".join(layer.replace("\\", "\\\\").replace(":", "\\:") for layer in layers)
        _call(libc.mount(b"overlay", target, b"overlay", _MS_RDONLY, os.fsencode(f"lowerdir={lower}")), "mount layers")
    os.chroot(target)
    os.chdir("/")


def _copy(source: str, target: int) -> None:
    """Copy the content of directory ``source`` (inside the root) into the directory open as ``target``."""
    status = os.stat(source)
    if not stat.S_ISDIR(status.st_mode):
        return
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for entry in os.scandir(source):
        _copy_entry(entry, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_entry(entry: os.DirEntry[str], target: int) -> None:
    status = entry.stat(follow_symlinks=False)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        os.mkdir(entry.name, 0o700, dir_fd=target)
        below = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=target)
        try:
            _copy(entry.path, below)
        finally:
            os.close(below)
        return
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(entry.path), entry.name, dir_fd=target)
    elif stat.S_ISREG(mode):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(entry.path, "rb") as reader, os.fdopen(os.open(entry.name, flags, 0o600, dir_fd=target), "wb") as out:
            shutil.copyfileobj(reader, out, 1 << 20)
    else:
        os.mknod(entry.name, mode, status.st_rdev, dir_fd=target)
    os.chown(entry.name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(entry.name, stat.S_IMODE(mode), dir_fd=target)
    os.utime(entry.name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def main() -> None:
    """Entry of the copying process: the order comes as JSON on stdin."""
    order = json.load(sys.stdin)
    targets = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for _, path in order["copies"]]
    _enter(order["layers"])
    for (source, _), target in zip(order["copies"], targets, strict=True):
        if os.path.isdir(source):
            _copy(source, target)


if __name__ == "__main__":
    main()
