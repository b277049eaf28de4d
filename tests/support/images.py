"""A busybox image made from the machine's own busybox, without a network."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile

APPLETS_SKIPPED = frozenset({"busybox", "init", "linuxrc"})
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534::/home:/bin/false\n"
)
GROUP = "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnobody:x:65534:\n"


def busybox_rootfs() -> bytes:
    """A tar of a small root file system: busybox, a link per applet, users, /tmp and a web page."""
    program = shutil.which("busybox")
    assert program, "busybox is missing: install busybox-static"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("www", 0o755)):
            _add(tar, name, tarfile.DIRTYPE, mode)
        with open(program, "rb") as file:
            _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, file.read())
        for applet in subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split():
            if applet not in APPLETS_SKIPPED:
                _add(tar, f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        _add(tar, "etc/passwd", tarfile.REGTYPE, 0o644, PASSWD.encode())
        _add(tar, "etc/group", tarfile.REGTYPE, 0o644, GROUP.encode())
        _add(tar, "www/index.html", tarfile.REGTYPE, 0o644, b"served\n")
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    entry.mtime = int(os.environ.get("SOURCE_DATE_EPOCH", "1700000000"))
    tar.addfile(entry, io.BytesIO(data))
