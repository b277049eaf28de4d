"""What a host must have for containers, checked by trying it; each finding names the thing and the fix.

Rule: a check changes nothing that outlives it, and looks at the very feature the engine uses, not at version numbers.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from oci.hostpaths import HostPaths

OK, NOTE, FAIL = 0, 1, 2
MIN_KERNEL = (5, 11)
LOW_DISK = 1 << 30
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
CONTROLLERS = ("memory", "cpu", "pids")


class Finding(NamedTuple):
    """One look at the host: ``severity`` is ``OK``, ``NOTE`` (works, with less) or ``FAIL``."""

    subject: str
    severity: int
    text: str
    fix: str = ""


def examine(paths: HostPaths) -> Iterator[Finding]:
    """Every check, in the order in which a failure would stop a container."""
    yield _kernel()
    yield _privileges()
    yield _libseccomp()
    yield _cgroups()
    yield _user_namespaces()
    yield _data_root(paths.data_root)
    yield _overlay(paths.data_root)
    yield _netlink("bridges and veth pairs", NETLINK_ROUTE)
    yield _netlink("nftables", NETLINK_NETFILTER)
    yield _forwarding()
    yield _engine(paths.engine_socket)


def _kernel() -> Finding:
    release = platform.release()
    numbers = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in release.split(".")[:2])
    if numbers < MIN_KERNEL:
        return Finding("kernel", FAIL, f"Linux {release} is too old", "use Linux 5.11 or newer")
    return Finding("kernel", OK, f"Linux {release}, Python {platform.python_version()}")


def _privileges() -> Finding:
    if os.geteuid() == 0:
        return Finding("privileges", OK, "running as root")
    return Finding("privileges", NOTE, "not root: this looks at a user's own engine", "sudo gantry doctor")


def _libseccomp() -> Finding:
    if ctypes.util.find_library("seccomp") or _loads("libseccomp.so.2"):
        return Finding("libseccomp", OK, "found")
    return Finding("libseccomp", FAIL, "libseccomp.so.2 is missing", "apt-get install libseccomp2")


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _cgroups() -> Finding:
    root = "/sys/fs/cgroup"
    if os.path.exists(f"{root}/cgroup.controllers"):
        with open(f"{root}/cgroup.controllers", encoding="ascii") as file:
            have = file.read().split()
        version = "v2"
    else:
        with open("/proc/cgroups", encoding="ascii") as file:
            rows = [line.split() for line in file if not line.startswith("#")]
        have = [row[0] for row in rows if row[3] == "1" and os.path.isdir(f"{root}/{row[0]}")]
        version = "v1"
    missing = [name for name in CONTROLLERS if name not in have]
    if len(missing) == len(CONTROLLERS):
        return Finding("cgroups", FAIL, f"none is mounted below {root}", f"mount -t cgroup2 none {root}")
    if missing:
        return Finding(
            "cgroups", NOTE, f"{version}, without {', '.join(missing)}: such limits are refused",
            "add cgroup_enable=memory swapaccount=1 to the kernel's command line",
        )  # fmt: skip
    return Finding("cgroups", OK, f"{version} with {', '.join(CONTROLLERS)}")


def _user_namespaces() -> Finding:
    for name, wanted in (("apparmor_restrict_unprivileged_userns", "0"), ("unprivileged_userns_clone", "1")):
        path = f"/proc/sys/kernel/{name}"
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            value = file.read().strip()
            if value != wanted:
                severity, fix = OK if os.geteuid() == 0 else FAIL, f"sysctl kernel.{name}={wanted}"
                return Finding("user namespaces", severity, f"{path} is {value}: users cannot make them", fix)
    with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
        if file.read().strip() == "0":
            return Finding("user namespaces", NOTE, "switched off", "sysctl user.max_user_namespaces=15000")
    return Finding("user namespaces", OK, "allowed")


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _data_root(path: str) -> Finding:
    place = _existing(path)
    if not os.access(place, os.W_OK):
        return Finding("data root", FAIL, f"{path} cannot be written", "choose another --data-root, or run as root")
    free = shutil.disk_usage(place).free
    text = f"{path}, {free / 1e9:.1f} GB free"
    if free < LOW_DISK:
        return Finding("data root", NOTE, text, "free some space: 'docker system prune' removes what is unused")
    return Finding("data root", OK, text)


def _overlay(path: str) -> Finding:
    """Mount a small overlay in a private mount namespace of a child."""
    if os.geteuid() != 0:
        return Finding("overlay", NOTE, "not tried: that needs root")
    with tempfile.TemporaryDirectory(prefix=".gantry-doctor-", dir=_existing(path)) as place:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{place}/{name}")
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work,index=off"
        command = ["unshare", "--mount", "mount", "-t", "overlay", "-o", options, "overlay", f"{place}/merged"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        shutil.rmtree(f"{place}/work", ignore_errors=True)
    if done.returncode:
        return Finding(
            "overlay", NOTE, f"does not work on {path}, layers are copied instead: {done.stderr.strip()}",
            "put the data root on ext4, xfs or btrfs",
        )  # fmt: skip
    return Finding("overlay", OK, f"works on {path}")


def _netlink(what: str, protocol: int) -> Finding:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol).close()
    except OSError as error:
        module = "nf_tables" if protocol == NETLINK_NETFILTER else "bridge veth"
        return Finding(what, FAIL, f"the kernel refuses: {error.strerror}", f"modprobe -a {module}")
    return Finding(what, OK, "the kernel answers")


def _forwarding() -> Finding:
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        on = file.read().strip() == "1"
    text = "on" if on else "off; the engine switches it on for its first bridge network"
    return Finding("IPv4 forwarding", OK, text)


def _engine(path: str) -> Finding:
    with socket.socket(socket.AF_UNIX) as probe:
        error = probe.connect_ex(path)
    if error == 0:
        return Finding("engine", OK, f"answers on {path}")
    return Finding("engine", NOTE, f"does not answer on {path}: {os.strerror(error)}", "gantry up")
