"""What this host is and can do, as ``GET /info`` tells it. Read once at start."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from typing import Any

from oci.hostpaths import SNAPSHOTTER
from oci.version import __version__

GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "ppc64le": "ppc64le"}
"""``uname -m`` to the architecture names of OCI and Go."""


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _memory_total() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _operating_system() -> tuple[str, str]:
    fields = dict(line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line)
    return fields.get("PRETTY_NAME", "Linux").strip('"'), fields.get("VERSION_ID", "").strip('"')


def _controllers() -> tuple[str, frozenset[str]]:
    """The cgroup version ("1" or "2") and the controllers that are here."""
    unified = _read("/sys/fs/cgroup/cgroup.controllers").split()
    if unified:
        return "2", frozenset(unified)
    rows = (line.split() for line in _read("/proc/cgroups").splitlines() if not line.startswith("#"))
    mounted = {name for row in rows for name in row[:1] if os.path.isdir(f"/sys/fs/cgroup/{name}")}
    return "1", frozenset(mounted)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts that do not change while the daemon runs."""

    kernel: str
    go_arch: str
    cgroup_version: str
    controllers: frozenset[str]
    pretty_name: str
    os_version: str
    memory: int

    @classmethod
    def read(cls) -> HostFacts:
        """Look at the kernel and the files that tell."""
        version, controllers = _controllers()
        pretty, os_version = _operating_system()
        arch = GO_ARCH.get(platform.machine(), platform.machine())
        return cls(platform.release(), arch, version, controllers, pretty, os_version, _memory_total())

    def info(self) -> dict[str, Any]:
        """The constant part of ``GET /info``."""
        memory, cpu = "memory" in self.controllers, "cpu" in self.controllers
        return {
            "ID": _machine_id(),
            "Driver": "overlay2",
            "DriverStatus": [["Snapshotter", SNAPSHOTTER], ["driver-type", "io.containerd.snapshotter.v1"]],
            "Plugins": {
                "Volume": ["local"],
                "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
                "Authorization": None,
                "Log": ["fluentd", "journald", "json-file", "local", "none", "syslog"],
            },
            "MemoryLimit": memory,
            "SwapLimit": memory and self._swap_limit(),
            "CpuCfsPeriod": cpu,
            "CpuCfsQuota": cpu,
            "CPUShares": cpu,
            "CPUSet": "cpuset" in self.controllers,
            "PidsLimit": "pids" in self.controllers,
            "OomKillDisable": self.cgroup_version == "1" and memory,
            "IPv4Forwarding": _read("/proc/sys/net/ipv4/ip_forward").strip() == "1",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": self.cgroup_version,
            "KernelVersion": self.kernel,
            "OperatingSystem": self.pretty_name,
            "OSVersion": self.os_version,
            "OSType": "linux",
            "Architecture": platform.machine(),
            "NCPU": os.cpu_count() or 1,
            "MemTotal": self.memory,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "GenericResources": None,
            "HttpProxy": os.environ.get("HTTP_PROXY", ""),
            "HttpsProxy": os.environ.get("HTTPS_PROXY", ""),
            "NoProxy": os.environ.get("NO_PROXY", ""),
            "Name": socket.gethostname(),
            "ExperimentalBuild": False,
            "ServerVersion": __version__,
            "Swarm": {
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "NodeID": "",
                "NodeAddr": "",
                "Error": "",
                "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "docker-init",
            "ContainerdCommit": {"ID": ""},
            "RuncCommit": {"ID": ""},
            "InitCommit": {"ID": ""},
            "SecurityOptions": self._security(),
            "DefaultAddressPools": [],
            "FirewallBackend": {"Driver": "nftables"},
            "CDISpecDirs": [],
            "Warnings": None,
        }

    def _swap_limit(self) -> bool:
        v1 = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
        return self.cgroup_version == "2" or os.path.exists(v1)

    def _security(self) -> list[str]:
        options = ["name=seccomp,profile=builtin"]
        if os.path.isdir("/sys/kernel/security/apparmor"):
            options.insert(0, "name=apparmor")
        if self.cgroup_version == "2":
            options.append("name=cgroupns")
        return options


def _machine_id() -> str:
    return _read("/etc/machine-id").strip() or socket.gethostname()
