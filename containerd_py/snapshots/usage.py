"""What a directory takes on disk.

Rule: standard library only; the layer worker counts with it, where the files were just written.
"""

from __future__ import annotations

import os


def disk_usage(path: str) -> tuple[int, int]:
    """(bytes on disk, inodes) below ``path``, itself included; a hard-linked file counts once."""
    info = os.lstat(path)
    size, inodes = info.st_blocks * 512, 1
    linked: set[int] = set()
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if info.st_ino in linked:
                            continue
                        linked.add(info.st_ino)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    size += info.st_blocks * 512
                    inodes += 1
        except FileNotFoundError:
            continue  # a running container removed it
    return size, inodes
