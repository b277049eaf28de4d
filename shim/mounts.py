"""Mounting a rootfs on the host, for runtimes that need it there (ours mounts inside the container's namespace).

Rule: mounts are made exactly at ``<bundle>/rootfs`` and nowhere else, and ``unmount_rootfs`` undoes all of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from oci.errors import Internal
from protos.wire import Values
from runc_py import syscalls

_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
}
_PAGE = 4096


def mount_rootfs(target: str, mounts: Sequence[Values]) -> None:
    """Mount containerd's list at ``target``. Undoes itself on failure."""
    if not mounts:
        return
    os.makedirs(target, mode=0o711, exist_ok=True)
    try:
        for mount in mounts:
            _mount(target, mount)
    except OSError as error:
        unmount_rootfs(target)
        raise Internal(f"cannot mount the rootfs at {target}: {error}") from error


def _mount(target: str, mount: Values) -> None:
    flags, data = 0, []
    for option in mount["options"]:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in ("rw", "defaults"):
            data.append(option)
    text = ",".join(data)
    if len(text) >= _PAGE:
        raise OSError(f"mount options of {len(text)} bytes: the kernel takes {_PAGE - 1}")
    kind = None if flags & syscalls.MS_BIND else mount["type"]
    syscalls.mount(mount["source"], target, kind, flags, text or None)
    if flags & syscalls.MS_BIND and flags & ~(syscalls.MS_BIND | syscalls.MS_REC):
        syscalls.mount(None, target, None, flags | syscalls.MS_REMOUNT, None)


def unmount_rootfs(target: str) -> None:
    """Unmount whatever is mounted at ``target``; nothing there is no error."""
    while True:
        try:
            syscalls.umount2(target, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise Internal(f"cannot unmount {target}: {error}") from error
