"""A minimal Debian or Ubuntu: the essential packages and apt, unpacked and then configured by their own dpkg.

Rule: packages run their scripts in a root and namespaces of their own, without network; what tells of this machine,
this hour or this download is removed afterwards.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterator

from engine.images.bootstrap.apt import Apt, run
from oci.errors import FailedPrecondition, Internal

PACKAGES = ("?essential", "apt")
MERGED = ("bin", "sbin", "lib", "lib64")
"""Top-level directories that are links into /usr in every suite that still has packages."""

CONFIGURE = """set -e
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for node in null zero full random urandom tty; do : > "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
ln -s /proc/self/fd "$1/dev/fd"
exec chroot "$1" sh -c 'dpkg --force-unsafe-io --force-depends --force-confnew --install /packages/*.deb'
"""
"""What runs inside the namespaces; ``$1`` is the root."""

POLICY = "#!/bin/sh\nexit 101\n"
"""policy-rc.d: no service is started by a package's script."""

REMOVED = (
    "packages", "usr/sbin/policy-rc.d", "var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb",
    "var/cache/ldconfig/aux-cache", "var/cache/debconf/*-old", "var/lib/dpkg/*-old", "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock", "var/log/*.log", "var/log/apt/*", "etc/hostname", "etc/resolv.conf", "etc/mtab",
    "etc/*-", "run/*", "tmp/*", "dev/*", "root/.bash_history", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id",
)  # fmt: skip
"""Globs of what an image has no use for or what differs from one run to the next."""

EXCLUDED = ("usr/share/doc/*/*", "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian/*")
"""Globs of what Debian's own slim images leave out too; copyright files stay."""

DPKG_EXCLUDES = "".join(f"path-exclude /{pattern}\n" for pattern in EXCLUDED)
DPKG_EXCLUDES += "path-include /usr/share/doc/*/copyright\n"

ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}


async def unpack(packages: list[str], root: str) -> None:
    """The files of every package below ``root``."""
    for name in MERGED:
        os.makedirs(f"{root}/usr/{name}", exist_ok=True)
        os.symlink(f"usr/{name}", f"{root}/{name}")
    for package in packages:
        script = 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink --numeric-owner -p -C "$2"'
        status, text = await run("sh", "-c", script, "sh", package, root)
        if status:
            raise Internal(f"cannot unpack {os.path.basename(package)}: {text.strip()[-400:]}")


async def configure(packages: list[str], root: str, epoch: int) -> None:
    """Let the packages' scripts set the system up. Raises ``FailedPrecondition`` with dpkg's words."""
    if os.geteuid() != 0:
        raise FailedPrecondition("making a Debian image runs package scripts as root", hint="run the engine as root")
    os.makedirs(f"{root}/packages")
    for package in packages:
        os.link(package, f"{root}/packages/{os.path.basename(package)}")
    os.makedirs(f"{root}/usr/sbin", exist_ok=True)
    with open(f"{root}/usr/sbin/policy-rc.d", "w") as file:
        file.write(POLICY)
    os.chmod(f"{root}/usr/sbin/policy-rc.d", 0o755)  # noqa: S103 - a script that dpkg runs
    for name in ("proc", "dev"):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    namespaces = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private")
    status, text = await run(
        "unshare", *namespaces, "sh", "-c", CONFIGURE, "sh", root, env={**ENVIRONMENT, "SOURCE_DATE_EPOCH": str(epoch)}
    )
    if status:
        raise FailedPrecondition(f"the packages could not be configured: {text.strip()[-1000:]}")


def clean(root: str, epoch: int, sources: str) -> None:
    """Remove what is this run's, and leave apt with ``sources``."""
    for pattern in (*REMOVED, *EXCLUDED):
        for path in _inside(root, pattern):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    os.makedirs(f"{root}/var/lib/apt/lists/partial", mode=0o700, exist_ok=True)
    written = {"machine-id": "", "apt/sources.list": sources, "dpkg/dpkg.cfg.d/docker": DPKG_EXCLUDES}
    for name, text in written.items():
        path = f"{root}/etc/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with open(path, "x") as file:
            file.write(text)
    _fix_dates(f"{root}/etc/shadow", epoch)


def _inside(root: str, pattern: str) -> Iterator[str]:
    """Paths that ``pattern`` matches, none through a link: a package's link may lead out of the root."""
    root = os.path.realpath(root)
    for path in glob.glob(f"{root}/{pattern}", include_hidden=True):
        if os.path.realpath(os.path.dirname(path)) == os.path.dirname(path) and not path.endswith("/copyright"):
            yield path


def _fix_dates(shadow: str, epoch: int) -> None:
    """The day passwords were "changed" is the day of ``epoch``, not today."""
    if not os.path.exists(shadow):
        return
    with open(shadow) as file:
        text = file.read()
    with open(shadow, "w") as file:
        file.write(re.sub(r"^([^:]*:[^:]*:)\d+:", rf"\g<1>{epoch // 86400}:", text, flags=re.MULTILINE))


def sources_of(apt: Apt) -> str:
    """sources.list for inside the image: the same archives, keyrings by the image's own trust."""
    with open(f"{apt.base}/sources.list") as file:
        return re.sub(r"\[signed-by=[^]]*\] ", "", file.read())
