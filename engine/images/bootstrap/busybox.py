"""The busybox image: one static program, a link for each thing it can do, users, and nothing else.

Rule: the same program gives the same image; its date is the program's.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tarfile
from typing import BinaryIO

from engine.images.bootstrap.apt import Apt, host_release, run
from engine.images.bootstrap.tree import Packer
from oci.errors import FailedPrecondition

DIRECTORIES = (
    ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o755), ("root", 0o700), ("sbin", 0o755),
    ("sys", 0o755), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755), ("usr/sbin", 0o755), ("var", 0o755),
    ("var/spool", 0o755), ("var/www", 0o755),
)  # fmt: skip
SKIPPED = frozenset({"busybox", "init", "linuxrc"})
USERS = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
tty:x:5:
disk:x:6:
wheel:x:10:root
mail:x:8:
www-data:x:33:
operator:x:37:
nobody:x:65534:
"""
SHADOW = """root:*:::::::
daemon:*:::::::
nobody:*:::::::
"""
_PT_INTERP = 3


def is_static(path: str) -> bool:
    """Whether ``path`` is an ELF program that needs no loader."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF":
            return False
        wide = head[4] == 2
        order = "<" if head[5] == 1 else ">"
        offset = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
        size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
        file.seek(offset)
        table = file.read(size * count)
    kinds = (struct.unpack_from(f"{order}I", table, n * size)[0] for n in range(count))
    return _PT_INTERP not in kinds


async def find_program(base: str) -> str:
    """A static busybox: the machine's own, or the one from package busybox-static."""
    for name in ("busybox", "/bin/busybox", "/usr/bin/busybox"):
        path = shutil.which(name)
        if path is not None and is_static(path):
            return path
    apt = Apt(base)
    await apt.use(*_distribution())
    package = await apt.download_alone("busybox-static")
    status, text = await run("dpkg-deb", "--extract", package, f"{base}/busybox")
    for path in (f"{base}/busybox/bin/busybox", f"{base}/busybox/usr/bin/busybox"):
        if status == 0 and os.path.exists(path):
            return path
    raise FailedPrecondition(f"package busybox-static holds no busybox: {text.strip()}")


def _distribution() -> tuple[str, str]:
    return host_release()


def pack(program: str, out: BinaryIO, epoch: int) -> int:
    """Write the image's tar; how many applets it has."""
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    applets = sorted(set(listed) - SKIPPED)
    packer = Packer(out, epoch)
    for name, mode in DIRECTORIES:
        packer.entry(name, tarfile.DIRTYPE, mode)
    with open(program, "rb") as file:
        packer.entry("bin/busybox", tarfile.REGTYPE, 0o755, file.read())
    for applet in applets:
        packer.entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
    packer.entry("usr/bin/env", tarfile.SYMTYPE, 0o777, link="../../bin/busybox")
    for name, mode, text in (
        ("etc/group", 0o644, GROUP),
        ("etc/passwd", 0o644, USERS),
        ("etc/shadow", 0o600, SHADOW),
    ):
        packer.entry(name, tarfile.REGTYPE, mode, text.encode())
    packer.close()
    return len(applets)
