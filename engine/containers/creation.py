"""From a create request and an image to a container's document: merging, defaults, validation. No side effects.

Rule: what Docker refuses at create is refused here with Docker's text; what is valid but not built says so.
"""

from __future__ import annotations

import os
import re
import socket

import msgspec

from engine.containers.config import ContainerConfig, CreateBody, Healthcheck, HostConfig, RestartPolicy
from engine.containers.logoptions import check_options as check_log_options
from engine.containers.signals import parse_signal
from engine.defaults import Defaults
from engine.interfaces import LocalImage, PortBinding, SandboxRequest
from oci.errors import InvalidArgument, Unimplemented
from oci.image import ExecutionConfig

MIN_MEMORY = 6 << 20
SHORTEST = 1_000_000
"""Nanoseconds a health check's durations have at least."""

POLICIES = ("no", "always", "on-failure", "unless-stopped")

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


def merged(config: ContainerConfig, image: ExecutionConfig) -> ContainerConfig:
    """``config`` with what it leaves open taken from the image."""
    entrypoint, cmd = config.entrypoint, config.cmd
    if not entrypoint:
        if not cmd:
            cmd = image.cmd
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == ("",):
        entrypoint = None
    env = config.env or ()
    keys = {e.partition("=")[0] for e in env}
    env = (*env, *(e for e in image.env if e.partition("=")[0] not in keys))
    exposed = {**image.exposed_ports, **(config.exposed_ports or {})}
    volumes = {**(image.volumes or {}), **(config.volumes or {})}
    return msgspec.structs.replace(
        config,
        user=config.user or image.user,
        exposed_ports=exposed or None,
        env=env,
        entrypoint=entrypoint,
        cmd=cmd,
        volumes=volumes or None,
        labels={**(image.labels or {}), **(config.labels or {})},
        working_dir=config.working_dir or image.working_dir,
        stop_signal=config.stop_signal or image.stop_signal,
        shell=config.shell or image.shell,
        healthcheck=_merged_health(config.healthcheck, image),
    )


def _merged_health(own: Healthcheck | None, image: ExecutionConfig) -> Healthcheck | None:
    base = msgspec.convert(msgspec.to_builtins(image.healthcheck), Healthcheck) if image.healthcheck else None
    if own is None or base is None:
        return own or base
    return Healthcheck(
        test=own.test or base.test,
        interval=own.interval or base.interval,
        timeout=own.timeout or base.timeout,
        start_period=own.start_period or base.start_period,
        start_interval=own.start_interval or base.start_interval,
        retries=own.retries or base.retries,
    )


def command(config: ContainerConfig) -> tuple[str, tuple[str, ...]]:
    """(path, args) of what runs; raises ``InvalidArgument("no command specified")``."""
    words = (*(config.entrypoint or ()), *(config.cmd or ()))
    if not words:
        raise InvalidArgument("no command specified")
    return words[0], words[1:]


UNSET_SWAPPINESS = -1
"""What the docker CLI sends when nobody asked for anything."""


def with_defaults(host: HostConfig, defaults: Defaults) -> HostConfig:
    """``host`` with the daemon's and Docker's defaults where nothing was given."""
    mode = "bridge" if host.network_mode in ("", "default") else host.network_mode
    memory_swap = host.memory_swap
    if host.memory > 0 and memory_swap == 0:
        memory_swap = host.memory * 2
    return msgspec.structs.replace(
        host,
        network_mode=mode,
        shm_size=host.shm_size or defaults.shm_size,
        ipc_mode=host.ipc_mode or defaults.ipc_mode,
        cgroupns_mode=host.cgroupns_mode or defaults.cgroupns_mode or _cgroupns_mode(host),
        runtime=host.runtime or defaults.runtime,
        log_config=defaults.log(host.log_config),
        ulimits=defaults.limits(host.ulimits),
        security_opt=defaults.security(host.security_opt),
        init=defaults.init_of(host),
        restart_policy=RestartPolicy(host.restart_policy.name or "no", host.restart_policy.maximum_retry_count),
        memory_swap=memory_swap,
        memory_swappiness=None if host.memory_swappiness == UNSET_SWAPPINESS else host.memory_swappiness,
        port_bindings=host.port_bindings or {},
    )


def _cgroupns_mode(host: HostConfig) -> str:
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    return "private" if unified and not host.privileged else "host"


def hostname(config: ContainerConfig, host: HostConfig, container_id: str) -> str:
    """The host name a container starts with."""
    if config.hostname:
        return config.hostname
    if host.network_mode == "host" or host.uts_mode == "host":
        return socket.gethostname()
    return container_id[:12]


def check(body: CreateBody) -> None:
    """Refuse a configuration that cannot work (after merging and defaults)."""
    _check_config(body.config)
    check_host(body.host)
    config, host = body.config, body.host
    if host.network_mode.startswith("container:"):
        if config.exposed_ports or host.port_bindings or host.publish_all_ports:
            raise InvalidArgument("conflicting options: port publishing and the container type network mode")
        if config.hostname:
            raise InvalidArgument("conflicting options: hostname and the network mode")
        if host.dns:
            raise InvalidArgument("conflicting options: dns and the network mode")
        if host.extra_hosts:
            raise InvalidArgument("conflicting options: custom host-to-IP mapping and the network mode")
    if host.uts_mode == "host" and config.hostname:
        raise InvalidArgument("conflicting options: hostname and the UTS mode")


def _check_config(config: ContainerConfig) -> None:
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for entry in config.env or ():
        if not entry or entry.startswith("="):
            raise InvalidArgument(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidArgument("invalid environment variable: it contains a NUL byte")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    if config.hostname and (len(config.hostname) > 64 or not _HOSTNAME.fullmatch(config.hostname)):
        raise InvalidArgument(f"invalid hostname format: {config.hostname}")
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def _check_health(health: Healthcheck) -> None:
    durations = {
        "Interval": health.interval,
        "Timeout": health.timeout,
        "StartPeriod": health.start_period,
        "StartInterval": health.start_interval,
    }
    for name, duration in durations.items():
        if duration != 0 and duration < SHORTEST:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")


def check_host(host: HostConfig) -> None:
    """Refuse host settings that cannot work."""
    policy = host.restart_policy
    if policy.name not in POLICIES:
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of {', '.join(POLICIES)}"
        )
    if policy.name != "on-failure" and policy.maximum_retry_count:
        raise InvalidArgument(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
            if policy.maximum_retry_count > 0
            else "invalid restart policy: maximum retry count cannot be negative"
        )
    if host.auto_remove and policy.name != "no":
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")
    check_log_options(host.log_config.type, host.log_config.config or {})
    if host.storage_opt:
        raise Unimplemented(
            f"--storage-opt {', '.join(host.storage_opt)} is not built: the overlayfs snapshotter sets no quotas",
            hint="put what may grow into a volume of its own: --tmpfs /path:size=… or a local volume with o=size=…",
        )
    if host.device_requests:
        raise InvalidArgument(
            f"could not select device driver {host.device_requests[0].get('Driver', '')!r} with capabilities: "
            f"{host.device_requests[0].get('Capabilities', [])}"
        )
    if host.isolation.lower() not in ("", "default"):
        raise InvalidArgument(f"invalid isolation '{host.isolation}' on linux")
    if host.userns_mode not in ("", "host"):
        raise InvalidArgument(f'invalid userns mode: "{host.userns_mode}"')
    _check_resources(host)


def _check_resources(host: HostConfig) -> None:
    if 0 < host.memory < MIN_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if host.memory == 0 and host.memory_swap > 0:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
    if host.memory > 0 and 0 < host.memory_swap < host.memory:
        raise InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
    if host.memory > 0 and host.memory_reservation > host.memory:
        raise InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")
    if host.memory_swappiness is not None and not -1 <= host.memory_swappiness <= 100:
        raise InvalidArgument(f"Invalid value: {host.memory_swappiness}, valid memory swappiness range is 0-100")
    if host.nano_cpus and (host.cpu_period or host.cpu_quota):
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set")
    cpus = os.cpu_count() or 1
    if host.nano_cpus < 0 or host.nano_cpus > cpus * 1_000_000_000:
        raise InvalidArgument(f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidArgument("CPU cfs period cannot be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if host.cpu_quota and 0 < host.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota cannot be less than 1ms (i.e. 1000)")
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidArgument(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")


def sandbox_request(container_id: str, name: str, body: CreateBody) -> SandboxRequest:
    """What the network layer is told about a container."""
    config, host = body.config, body.host
    bindings = {
        port: tuple(PortBinding(host_ip=b.host_ip, host_port=b.host_port) for b in entries or ()) or (PortBinding(),)
        for port, entries in (host.port_bindings or {}).items()
    }
    return SandboxRequest(
        container_id=container_id,
        name=name,
        hostname=hostname(config, host, container_id),
        mode="none" if config.network_disabled else host.network_mode,
        exposed_ports=tuple(config.exposed_ports or ()),
        port_bindings=bindings,
        publish_all=host.publish_all_ports,
        endpoints=body.networking.endpoints_config,
        mac_address=config.mac_address,
        dns=host.dns or (),
        dns_search=host.dns_search or (),
        dns_options=host.dns_options or (),
        extra_hosts=host.extra_hosts or (),
        links=host.links or (),
        domainname=config.domainname,
    )


def image_view(image: LocalImage) -> str:
    """The reference a container shows as its image."""
    return image.reference or image.id
