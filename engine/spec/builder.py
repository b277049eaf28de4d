"""From a container's document to its OCI runtime spec.

Rule: no side effects, and nothing here waits: everything that needs the host (users, devices) is read, never changed.
Sources: runtime-spec, Docker Engine API.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from engine.containers.config import ContainerConfig, HostConfig
from engine.containers.model import SpecRequest
from engine.spec import (
    capabilities,
    defaults,
    devices,
    init,
    mounts,
    process,
    propagation,
    resources,
    seccomp,
    security,
    users,
)
from engine.spec.rootfs import Rootfs, layers_of
from oci.errors import InvalidArgument

OCI_VERSION = "1.0.2"
"""The version that crun of Debian 12 takes, too; whatever is used beyond it is refused by a runtime that lacks it."""
ROOTFS = "rootfs"
"""The rootfs directory of a bundle, as containerd lays it out."""

PING_GROUPS = "net.ipv4.ping_group_range"
UNPRIVILEGED_PORTS = "net.ipv4.ip_unprivileged_port_start"


def validate(config: ContainerConfig, host: HostConfig) -> None:
    """Refuse at create what the spec could not express: capabilities, limits, options, device rules."""
    names = capabilities.effective(host.cap_add, host.cap_drop, privileged=False)
    options = security.parse(host.security_opt)
    if options.seccomp not in ("", "unconfined", "builtin"):
        seccomp.custom_profile(options.seccomp, names)
    process.rlimits(host.ulimits or ())
    devices.parse_rules(host.device_cgroup_rules or ())
    for given in (host.tmpfs or {}).values():
        mounts.tmpfs_options(given)
    _check_sysctls(config, host)


def build_spec(request: SpecRequest) -> dict[str, Any]:
    """The spec of a container that is about to start. Raises InvalidArgument and FailedPrecondition in Docker's words.

    Mount and device lists are new on each call; the seccomp profile is shared and must not be changed.
    """
    container = request.container
    config, host = container.config, container.host
    options = security.parse(host.security_opt)
    names = capabilities.effective(host.cap_add, host.cap_drop, privileged=host.privileged)
    args = [container.path, *container.args]
    all_mounts = mounts.build(request)
    if host.privileged:
        mounts.make_writable(all_mounts, "/sys")
    if options.writable_cgroups if options.writable_cgroups is not None else host.privileged:
        mounts.make_writable(all_mounts, "/sys/fs/cgroup")
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(request, args, names, options),
        "root": {"path": ROOTFS, "readonly": host.readonly_rootfs},
        "mounts": all_mounts,
        "linux": _linux(request, names, options),
    }
    if host.uts_mode != "host":
        spec["hostname"] = hostname_of(request)
        if config.domainname:
            spec["domainname"] = config.domainname
    if host.annotations:
        spec["annotations"] = dict(host.annotations)
    if host.init and host.pid_mode in ("", "private"):
        init.wrap(spec, host.runtime)
    return spec


def hostname_of(request: SpecRequest) -> str:
    """The host name inside: the configured one, the host's in its UTS namespace, else the short id."""
    container = request.container
    if container.host.uts_mode == "host":
        return socket.gethostname()
    return container.config.hostname or container.id[:12]


def _process(
    request: SpecRequest, args: list[str], names: list[str], options: security.SecurityOptions
) -> dict[str, Any]:
    config, host = request.container.config, request.container.host
    with Rootfs(layers_of(request.rootfs)) as rootfs:
        user = users.resolve_in(rootfs, config.user, host.group_add or ())
    result: dict[str, Any] = {
        "terminal": config.tty,
        "user": process.user_object(user),
        "args": args,
        "env": process.environment(config.env or (), hostname=hostname_of(request), tty=config.tty),
        "cwd": config.working_dir or "/",
        "capabilities": process.capability_sets(names),
        "noNewPrivileges": options.no_new_privileges,
        "oomScoreAdj": host.oom_score_adj,
    }
    if config.tty and any(host.console_size):
        height, width = host.console_size
        result["consoleSize"] = {"height": height, "width": width}
    if limits := process.rlimits(host.ulimits or ()):
        result["rlimits"] = limits
    if options.apparmor not in ("", "unconfined"):
        result["apparmorProfile"] = options.apparmor
    return result


def _linux(request: SpecRequest, names: list[str], options: security.SecurityOptions) -> dict[str, Any]:
    container = request.container
    host = container.host
    nodes, rules = devices.build(host)
    linux: dict[str, Any] = {
        "namespaces": namespaces(request),
        "cgroupsPath": cgroups_path(host.cgroup_parent, container.id),
        "resources": {"devices": rules, **resources.build(host)},
        "devices": nodes,
    }
    if sysctls := _sysctls(request):
        linux["sysctl"] = sysctls
    masked, readonly = host.masked_paths, host.readonly_paths
    if not host.privileged or masked is not None:
        linux["maskedPaths"] = list(defaults.masked_paths() if masked is None else masked)
    if not host.privileged or readonly is not None:
        linux["readonlyPaths"] = list(defaults.READONLY_PATHS if readonly is None else readonly)
    if (profile := _seccomp(host, names, options)) is not None:
        linux["seccomp"] = profile
    if wanted := mounts.rootfs_propagation(container.mounts):
        propagation.check(container.mounts)
        linux["rootfsPropagation"] = wanted
    return linux


def namespaces(request: SpecRequest) -> list[dict[str, str]]:
    """New, joined or, when left out, the host's."""
    host = request.container.host
    result: list[dict[str, str]] = [{"type": "mount"}]
    if request.netns is not None:
        result.append({"type": "network", "path": request.netns})
    for kind, mode, path in (
        ("uts", host.uts_mode, request.uts_ns),
        ("pid", host.pid_mode, request.pid_ns),
        ("ipc", host.ipc_mode, request.ipc_ns),
    ):
        if path is not None:
            result.append({"type": kind, "path": path})
        elif mode.startswith("container:"):
            raise InvalidArgument(f"cannot join the {kind} namespace of {mode}: that container is not running")
        elif mode != "host":
            result.append({"type": kind})
    default = "private" if os.path.exists(resources.UNIFIED_FILE) and not host.privileged else "host"
    if (host.cgroupns_mode or default) == "private":
        result.append({"type": "cgroup"})
    return result


def cgroups_path(parent: str, container_id: str) -> str:
    """``linux.cgroupsPath`` for the cgroupfs driver. InvalidArgument for a parent that leaves the tree."""
    chosen = parent or defaults.CGROUP_PARENT
    if ".." in chosen.split("/"):
        raise InvalidArgument(f'cgroup-parent "{parent}" must not contain ".."')
    if chosen.endswith(".slice"):
        raise InvalidArgument(
            f'cgroup-parent "{parent}" is a systemd slice, and the cgroup driver is cgroupfs', hint="give a path"
        )
    return f"{chosen.rstrip('/')}/{container_id}"


def _sysctls(request: SpecRequest) -> dict[str, str]:
    """Ping without CAP_NET_RAW and low ports without CAP_NET_BIND_SERVICE, in networks of the container's own."""
    host = request.container.host
    result = {}
    if request.netns is not None and not host.network_mode.startswith("container:"):
        result = {PING_GROUPS: "0 2147483647", UNPRIVILEGED_PORTS: "0"}
    result.update(host.sysctls or {})
    return result


def _check_sysctls(config: ContainerConfig, host: HostConfig) -> None:
    for name in host.sysctls or {}:
        if name.startswith("net.") and host.network_mode == "host":
            raise InvalidArgument(f"sysctl '{name}' not allowed in host network namespace")
        ipc = name.startswith(("kernel.shm", "kernel.msg", "fs.mqueue.")) or name == "kernel.sem"
        if ipc and host.ipc_mode == "host":
            raise InvalidArgument(f"sysctl '{name}' not allowed in host ipc namespace")
        uts = name in ("kernel.hostname", "kernel.domainname")
        if not (ipc or uts or name.startswith("net.")):
            raise InvalidArgument(f"sysctl '{name}' is not separate for containers: it would change the whole host")
        if uts and config.hostname and name == "kernel.hostname":
            raise InvalidArgument("conflicting options: hostname and sysctl kernel.hostname")


def _seccomp(host: HostConfig, names: list[str], options: security.SecurityOptions) -> dict[str, Any] | None:
    if options.seccomp == "unconfined" or (host.privileged and not options.seccomp):
        return None
    if options.seccomp in ("", "builtin"):
        return seccomp.default_profile(names)
    return seccomp.custom_profile(options.seccomp, names)
