"""Where a file system puts the directories of snapshots.

Rule: a hint and never a condition: what a file system does not know it does not get.

ext4 places a new directory near its parent, so all snapshots end up in the few block groups around theirs, with what
else lives there. Searching those for free inodes is slow once many were freed, because ext4 passes over inodes that
were deleted in the last minutes (``recently_deleted``): making a file then costs 250 µs instead of 50. The "top of
directory hierarchies" attribute (chattr(1), ``T``) has every subdirectory placed in a roomy group of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
"""``FS_IOC_GETFLAGS`` and ``FS_IOC_SETFLAGS`` of linux/fs.h where a long has 64 bits."""
_TOP_DIRECTORY = 0x00020000
_FLAGS = struct.Struct("@l")


def spread(directory: str) -> bool:
    """Have the subdirectories of ``directory`` placed far from each other; whether the file system takes the hint."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = _FLAGS.unpack(fcntl.ioctl(descriptor, _GET_FLAGS, _FLAGS.pack(0)))
            if not flags & _TOP_DIRECTORY:
                fcntl.ioctl(descriptor, _SET_FLAGS, _FLAGS.pack(flags | _TOP_DIRECTORY))
            return True
        finally:
            os.close(descriptor)
    return False
