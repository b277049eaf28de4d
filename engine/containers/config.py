"""What a client asks for: Docker's ``ContainerConfig``, ``HostConfig`` and the body of ``POST /containers/create``.

Rule: field names and defaults are the Docker API's (1.51); every field has a default, unknown keys are ignored, and
what a client sent comes back from inspect as it was sent. Source: Docker Engine API reference, schemas of that name.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from engine.http import gojson
from oci.errors import InvalidArgument

T = TypeVar("T")


class Healthcheck(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Durations in nanoseconds; ``test`` is ``["CMD"|"CMD-SHELL"|"NONE", …]``, empty means the image's."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, rename="pascal", kw_only=True):
    """The portable part of a container's configuration. ``None`` means not given (the image's value then holds)."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: tuple[str, ...] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: tuple[str, ...] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: tuple[str, ...] | None = None


class LogConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """The logging driver's name and options."""

    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicy(msgspec.Struct, frozen=True, rename="pascal"):
    """``name`` is ``""``, ``no``, ``always``, ``on-failure`` or ``unless-stopped``."""

    name: str = ""
    maximum_retry_count: int = 0


class PortBinding(msgspec.Struct, frozen=True):
    """One host address and port of a published port, as text."""

    host_ip: str = msgspec.field(default="", name="HostIp")
    host_port: str = msgspec.field(default="", name="HostPort")


class WeightDevice(msgspec.Struct, frozen=True, rename="pascal"):
    """A block device's relative weight (10 to 1000)."""

    path: str = ""
    weight: int = 0


class ThrottleDevice(msgspec.Struct, frozen=True, rename="pascal"):
    """A block device's limit: bytes or operations per second."""

    path: str = ""
    rate: int = 0


class DeviceMapping(msgspec.Struct, frozen=True, rename="pascal"):
    """A host device given to the container; permissions are letters of ``rwm``."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class Ulimit(msgspec.Struct, frozen=True, rename="pascal"):
    """A resource limit by its name without ``RLIMIT_``, lower case; −1 means unlimited."""

    name: str = ""
    hard: int = 0
    soft: int = 0


class BindOptions(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Options of a mount of type ``bind``."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """A volume driver and its options."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Options of a mount of type ``volume``."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Options of a mount of type ``tmpfs``; ``mode`` holds permission bits."""

    size_bytes: int = 0
    mode: int = 0
    options: tuple[tuple[str, ...], ...] = ()


class Mount(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """One entry of ``HostConfig.Mounts`` (``--mount``)."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class HostConfig(msgspec.Struct, frozen=True, rename="pascal", kw_only=True):
    """The part of a container's configuration that depends on the host. Sizes in bytes, times in microseconds."""

    binds: tuple[str, ...] | None = None
    container_id_file: str = msgspec.field(default="", name="ContainerIDFile")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, tuple[PortBinding, ...] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: tuple[str, ...] | None = None
    mounts: tuple[Mount, ...] | None = None
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] | None = None
    cap_add: tuple[str, ...] | None = None
    cap_drop: tuple[str, ...] | None = None
    cgroupns_mode: str = ""
    dns: tuple[str, ...] | None = None
    dns_options: tuple[str, ...] | None = None
    dns_search: tuple[str, ...] | None = None
    extra_hosts: tuple[str, ...] | None = None
    group_add: tuple[str, ...] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: tuple[str, ...] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: tuple[str, ...] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = msgspec.field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: tuple[WeightDevice, ...] | None = None
    blkio_device_read_bps: tuple[ThrottleDevice, ...] | None = None
    blkio_device_write_bps: tuple[ThrottleDevice, ...] | None = None
    blkio_device_read_iops: tuple[ThrottleDevice, ...] | None = msgspec.field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: tuple[ThrottleDevice, ...] | None = msgspec.field(
        default=None, name="BlkioDeviceWriteIOps"
    )
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: tuple[DeviceMapping, ...] | None = None
    device_cgroup_rules: tuple[str, ...] | None = None
    device_requests: tuple[dict[str, Any], ...] | None = None
    kernel_memory_tcp: int = msgspec.field(default=0, name="KernelMemoryTCP")
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: tuple[Ulimit, ...] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = msgspec.field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = msgspec.field(default=0, name="IOMaximumBandwidth")
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None


class NetworkingConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """``EndpointsConfig``: Docker's ``EndpointSettings`` objects by network name, kept as they came."""

    endpoints_config: dict[str, dict[str, Any]] = {}


class CreateBody(msgspec.Struct, frozen=True):
    """The decoded body of ``POST /containers/create``."""

    config: ContainerConfig
    host: HostConfig
    networking: NetworkingConfig


class _Parts(msgspec.Struct, frozen=True, rename="pascal"):
    """What a create request has beside the container's own configuration."""

    host_config: dict[str, Any] = {}
    networking_config: dict[str, Any] = {}
    runtime: str = ""


def _converted(document: dict[str, Any], kind: type[T]) -> T:
    return msgspec.convert(cleaned(gojson.folded(document, kind)), kind, strict=False)


_SETS = frozenset({"ExposedPorts", "Volumes", "EndpointsConfig"})
"""Maps whose values may be null, meaning an empty object."""

_WORDS = frozenset({"Cmd", "Entrypoint", "Shell", "OnBuild"})
"""Lists that may come as one string."""


def cleaned(value: Any, key: str = "") -> Any:
    """``value`` without nulls: in Go's JSON null means not given, and clients send many."""
    if isinstance(value, dict):
        if key in _SETS:
            return {k: cleaned(v) if v is not None else {} for k, v in value.items()}
        if key == "PortBindings":
            return {k: cleaned(v) if v is not None else [] for k, v in value.items()}
        return {k: cleaned(v, k) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [cleaned(v) for v in value]
    if key in _WORDS and isinstance(value, str):
        return [value]
    return value


def decode_create(raw: bytes) -> CreateBody:
    """The create body, or ``HostConfig`` and friends missing; raises ``InvalidArgument`` naming the JSON path."""
    try:
        document = msgspec.json.decode(raw or b"{}")
        if not isinstance(document, dict):
            raise InvalidArgument("invalid container configuration: a JSON object is expected")
        parts = gojson.convert(document, _Parts)
        host = dict(parts.host_config)
        # Where the oldest clients put it, and the SDK for Python still does.
        if parts.runtime:
            host.setdefault("Runtime", parts.runtime)
        return CreateBody(
            config=_converted(document, ContainerConfig),
            host=_converted(host, HostConfig),
            networking=_converted(parts.networking_config, NetworkingConfig),
        )
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"invalid container configuration: {error}") from None
