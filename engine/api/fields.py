"""Fields of what clients send to make containers, execs and log drivers' options, with what is not plain about them.

Rule: the fields are those of the types that requests are decoded into, so that the page (``engine.api.compatibility``)
cannot list one that is not read; a remark that names no field fails the page's test.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.containers.config import (
    BindOptions,
    ContainerConfig,
    DriverConfig,
    Healthcheck,
    HostConfig,
    LogConfig,
    Mount,
    RestartPolicy,
    TmpfsOptions,
    VolumeOptions,
)
from engine.containers.exec import ExecConfig
from engine.containers.logoptions import EVERYWHERE, OPTIONS

GROUPS: tuple[tuple[str, str, type[msgspec.Struct]], ...] = (
    ("Container", "", ContainerConfig),
    ("Container", "Healthcheck.", Healthcheck),
    ("Container", "HostConfig.", HostConfig),
    ("Container", "HostConfig.RestartPolicy.", RestartPolicy),
    ("Container", "HostConfig.LogConfig.", LogConfig),
    ("Container", "HostConfig.Mounts.", Mount),
    ("Container", "HostConfig.Mounts.BindOptions.", BindOptions),
    ("Container", "HostConfig.Mounts.VolumeOptions.", VolumeOptions),
    ("Container", "HostConfig.Mounts.VolumeOptions.DriverConfig.", DriverConfig),
    ("Container", "HostConfig.Mounts.TmpfsOptions.", TmpfsOptions),
    ("Exec", "", ExecConfig),
)
"""(heading, where the type's fields stand in the body, type)."""

_WINDOWS = "kept; means something on Windows only"
_BUFFERED = "checked; changes nothing: the raw log is the buffer, no container waits and nothing is given up"

REMARKS: dict[str, str] = {
    "ArgsEscaped": _WINDOWS,
    "HostConfig.ContainerIDFile": "kept; the client writes that file",
    "HostConfig.Cgroup": "kept and not used, as in Docker",
    "HostConfig.CpuCount": _WINDOWS,
    "HostConfig.CpuPercent": _WINDOWS,
    "HostConfig.IOMaximumIOps": _WINDOWS,
    "HostConfig.IOMaximumBandwidth": _WINDOWS,
    "HostConfig.Isolation": "`default`; the others are refused, they are of Windows",
    "HostConfig.VolumeDriver": "`local`; others are refused when a volume is to be made: there are no plugins",
    "HostConfig.StorageOpt": "refused: the overlayfs snapshotter sets no quotas",
    "HostConfig.UsernsMode": "`host` or empty, as in Docker",
    "HostConfig.DeviceRequests": "refused: no device driver to select (`Devices` and `DeviceCgroupRules` work)",
    "HostConfig.SecurityOpt": "`label` is ignored without SELinux, as in Docker; a profile is refused without AppArmor",
    "HostConfig.MemorySwappiness": "cgroup v1, as in Docker",
    "HostConfig.OomKillDisable": "cgroup v1, as in Docker",
    "HostConfig.KernelMemoryTCP": "cgroup v1, as in Docker",
    "HostConfig.LogConfig.Type": "`json-file`, `local`, `none`, `syslog`, `journald`, `fluentd`; others are refused",
    "HostConfig.Mounts.Type": "`bind`, `volume`, `tmpfs`; `image`, `cluster` and `npipe` are refused",
    "HostConfig.Mounts.Consistency": "ignored, as in Docker on Linux",
    "HostConfig.Mounts.VolumeOptions.DriverConfig.Name": "`local`; others are refused: there are no plugins",
}
"""By field."""

LOG_REMARKS: dict[str, str] = {
    "mode": _BUFFERED,
    "max-buffer-size": _BUFFERED,
    "fluentd-async": "checked; changes nothing: it always is",
    "fluentd-async-connect": "checked; changes nothing: it always is",
    "fluentd-buffer-limit": _BUFFERED,
    "fluentd-max-retries": "checked; changes nothing: what was not taken is sent again until it is",
    "fluentd-write-timeout": "checked; changes nothing: 5 s",
    "fluentd-retry-wait": "the first pause; later ones are twice as long, up to 30 s",
    "fluentd-request-ack": "a batch at a time",
    "fluentd-address": "`tcp://`, `tls://`, `unix://`",
    "syslog-address": "`unix://`, `unixgram://`, `udp://`, `tcp://`, `tcp+tls://`",
    "tag": "Docker's fields and functions; no `if`, `range`, `with` or variables",
}
"""By option of a log driver."""


def fields() -> Iterator[tuple[str, str]]:
    """(heading, field) in the order of the types."""
    for heading, prefix, kind in GROUPS:
        for field in msgspec.structs.fields(kind):
            yield heading, f"{prefix}{field.encode_name}"


def tables() -> list[str]:
    """The page's lines about fields and options."""
    lines: list[str] = []
    for heading in dict.fromkeys(heading for heading, _, _ in GROUPS):
        lines += [f"## Fields: {heading.lower()}\n", "| field | |", "|---|---|"]
        lines += [f"| `{name}` | {REMARKS.get(name, 'works')} |" for at, name in fields() if at == heading]
        lines.append("")
    lines += ["## Options of log drivers\n", "| driver | option | |", "|---|---|---|"]
    for driver, names in OPTIONS.items():
        lines += [f"| `{driver}` | `{name}` | {LOG_REMARKS.get(name, 'works')} |" for name in names]
    return [*lines, *(f"| every | `{name}` | {LOG_REMARKS.get(name, 'works')} |" for name in EVERYWHERE)]
