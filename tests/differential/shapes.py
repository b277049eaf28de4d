"""What the API promises of its answers: the fields of each, and their types; and whether an answer keeps that.

Rule: a type is ``str int num bool time any``, ``[T]`` a list, ``{T}`` an object of such values, or a name of
``SHAPES``; ``?T`` may be null. A field is ``Name``; ``Name?`` may be absent; ``Name>1.44`` is there from that version
on; ``Name<1.44`` was dropped in that version. No other fields are allowed. Source: the Docker Engine API 1.24 to 1.51;
the real daemons are held to the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Version = tuple[int, int]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "num": (int, float), "bool": bool}
_FIELD = re.compile(r"([^?<>]+)(\?)?(?:([<>])(\d+)\.(\d+))?")


def fields(**of_type: str) -> dict[str, str]:
    """A shape written the short way round: each type with its fields."""
    return {name: kind for kind, names in of_type.items() for name in names.split()}


_ENDPOINT = fields(
    str="NetworkID EndpointID Gateway IPAddress IPv6Gateway GlobalIPv6Address MacAddress",
    int="IPPrefixLen GlobalIPv6PrefixLen GwPriority>1.48",
) | {
    "IPAMConfig": "?IpamOfEndpoint",
    "Links": "?[str]",
    "Aliases": "?[str]",
    "DriverOpts": "?{str}",
    "DNSNames>1.44": "?[str]",
}

_LIMITS = fields(
    str="CgroupParent CpusetCpus CpusetMems",
    int="CpuShares Memory NanoCpus BlkioWeight CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime "
    "MemoryReservation MemorySwap CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth "
    "KernelMemory<1.42 KernelMemoryTCP<1.42",
) | {
    **{f"BlkioDevice{way}": "?[Rate]" for way in ("ReadBps", "WriteBps", "ReadIOps", "WriteIOps")},
    "BlkioWeightDevice": "?[Weight]",
    "Devices": "?[Device]",
    "DeviceCgroupRules": "?[str]",
    "DeviceRequests": "?[any]",
    "MemorySwappiness": "?int",
    "OomKillDisable": "?bool",
    "PidsLimit": "?int",
    "Ulimits": "?[Ulimit]",
}  # fmt: skip

_COUNTERS = (
    "io_service_bytes_recursive io_serviced_recursive io_queue_recursive io_service_time_recursive "
    "io_wait_time_recursive io_merged_recursive io_time_recursive sectors_recursive"
)
_OF_LISTED = {"SizeRw?": "int", "SizeRootFs?": "int", "ImageManifestDescriptor?>1.48": "Descriptor"}

SHAPES: dict[str, dict[str, str]] = {
    "Error": {"message": "str"},
    "Descriptor": {"mediaType": "str", "digest": "str", "size": "int"},
    "Deleted": {"Untagged?": "str", "Deleted?": "str"},
    "IpamOfEndpoint": {"IPv4Address?": "str", "IPv6Address?": "str", "LinkLocalIPs?": "[str]"},
    "Endpoint": _ENDPOINT,
    "Rate": {"Path": "str", "Rate": "int"},
    "Weight": {"Path": "str", "Weight": "int"},
    "Device": fields(str="PathOnHost PathInContainer CgroupPermissions"),
    "Ulimit": {"Name": "str", "Hard": "int", "Soft": "int"},
    "Port": {"PrivatePort": "int", "Type": "str", "PublicPort?": "int", "IP?": "str"},
    "Binding": {"HostIp": "str", "HostPort": "str"},
    "MountPoint": fields(str="Type Source Destination Mode Propagation Name? Driver?", bool="RW"),
    "Networks": {"Networks": "{Endpoint}"},
    "Mode": {"NetworkMode": "str"},
    "Listed": {
        **fields(str="Id Image ImageID Command State Status", int="Created"),
        "Names": "[str]", "Ports": "[Port]", "Labels": "{str}", "HostConfig": "Mode", "NetworkSettings": "Networks",
        "Mounts": "[MountPoint]", **_OF_LISTED,
    },
    "Probe": fields(time="Start End", int="ExitCode", str="Output"),
    "Health": {"Status": "str", "FailingStreak": "int", "Log": "?[Probe]"},
    "State": {
        **fields(str="Status Error", bool="Running Paused Restarting OOMKilled Dead", int="Pid ExitCode"),
        "StartedAt": "time", "FinishedAt": "time", "Health?": "Health",
    },
    "LogConfig": {"Type": "str", "Config": "?{str}"},
    "RestartPolicy": {"Name": "str", "MaximumRetryCount": "int"},
    "HostConfig": {
        **_LIMITS,
        **fields(
            str="ContainerIDFile NetworkMode VolumeDriver CgroupnsMode IpcMode Cgroup PidMode UTSMode UsernsMode "
            "Runtime Isolation",
            int="OomScoreAdj ShmSize",
            bool="AutoRemove Privileged PublishAllPorts ReadonlyRootfs Init?",
        ),
        **dict.fromkeys(
            ("Binds", "VolumesFrom", "CapAdd", "CapDrop", "Dns", "DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd",
             "Links", "SecurityOpt", "MaskedPaths", "ReadonlyPaths"), "?[str]"
        ),
        "LogConfig": "LogConfig", "PortBindings": "?{[Binding]}", "RestartPolicy": "RestartPolicy",
        "ConsoleSize": "[int]", "Mounts?": "[any]", "Tmpfs?": "{str}", "Sysctls?": "{str}",
        "StorageOpt?": "{str}", "Annotations?": "{str}",
    },
    "HealthConfig": {"Test?": "[str]", **fields(int="Interval? Timeout? Retries? StartPeriod? StartInterval?")},
    "Config": {
        **fields(
            str="Hostname Domainname User Image WorkingDir StopSignal? MacAddress?",
            bool="AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce ArgsEscaped? NetworkDisabled?",
            int="StopTimeout?",
        ),
        **dict.fromkeys(("Env", "Cmd", "Entrypoint", "OnBuild", "Shell?"), "?[str]"),
        "ExposedPorts?": "{any}", "Healthcheck?": "HealthConfig", "Volumes": "?{any}", "Labels": "?{str}",
    },
    "GraphDriver": {"Name": "str", "Data": "?{str}"},
    "NetworkSettings": {
        **fields(
            str="Bridge SandboxID SandboxKey LinkLocalIPv6Address EndpointID Gateway GlobalIPv6Address IPAddress "
            "IPv6Gateway MacAddress",
            int="LinkLocalIPv6PrefixLen GlobalIPv6PrefixLen IPPrefixLen", bool="HairpinMode",
        ),
        "Ports": "?{?[Binding]}", "SecondaryIPAddresses": "?[any]", "SecondaryIPv6Addresses": "?[any]",
        "Networks": "{Endpoint}",
    },
    "Container": {
        **fields(
            str="Id Path Image ResolvConfPath HostnamePath HostsPath LogPath Name Driver Platform MountLabel "
            "ProcessLabel AppArmorProfile",
            int="RestartCount", time="Created",
        ),
        "Args": "[str]", "State": "State", "ExecIDs": "?[str]", "HostConfig": "HostConfig",
        "GraphDriver": "GraphDriver", "Mounts": "[MountPoint]", "Config": "Config",
        "NetworkSettings": "NetworkSettings", **_OF_LISTED,
    },
    "Change": {"Path": "str", "Kind": "int"},
    "Top": {"Titles": "[str]", "Processes": "?[[str]]"},
    "CpuUsage": {**fields(int="total_usage usage_in_kernelmode usage_in_usermode"), "percpu_usage?": "[int]"},
    "Throttling": fields(int="periods throttled_periods throttled_time"),
    "Cpu": {
        "cpu_usage": "CpuUsage", "throttling_data": "Throttling", "system_cpu_usage?": "int", "online_cpus?": "int"
    },
    "Memory": {**fields(int="usage? max_usage? limit? failcnt?"), "stats?": "{int}"},
    "Traffic": fields(int="rx_bytes rx_packets rx_errors rx_dropped tx_bytes tx_packets tx_errors tx_dropped"),
    "Blkio": {f"{name}?": "?[any]" for name in _COUNTERS.split()},
    "Stats": {
        **fields(str="id name", time="read preread", int="num_procs"), "pids_stats": "{int}", "blkio_stats": "Blkio",
        "storage_stats": "{any}", "cpu_stats": "Cpu", "precpu_stats": "Cpu", "memory_stats": "Memory",
        "networks?": "{Traffic}",
    },
    "ProcessConfig": {**fields(bool="tty privileged?", str="entrypoint user?"), "arguments": "[str]"},
    "Exec": {
        **fields(str="ID ContainerID DetachKeys", bool="Running OpenStdin OpenStderr OpenStdout CanRemove", int="Pid"),
        "ExitCode": "?int", "ProcessConfig": "ProcessConfig",
    },
    "ListedImage": {
        **fields(str="Id ParentId", int="Created Size SharedSize Containers VirtualSize<1.44"),
        "RepoTags": "?[str]", "RepoDigests": "?[str]", "Labels": "?{str}", "Descriptor?>1.48": "Descriptor",
        "Manifests?": "[any]",
    },
    "Layer": {**fields(str="Id CreatedBy Comment", int="Created Size"), "Tags": "?[str]"},
    "ImageConfig": {
        **fields(
            str="User? WorkingDir? StopSignal? Hostname? Domainname? Image?",
            bool="AttachStdin? AttachStdout? AttachStderr? Tty? OpenStdin? StdinOnce? ArgsEscaped?", int="StopTimeout?",
        ),
        **dict.fromkeys(("Env?", "Cmd?", "Entrypoint?", "OnBuild?", "Shell?"), "?[str]"),
        "ExposedPorts?": "{any}", "Healthcheck?": "HealthConfig", "Volumes?": "?{any}", "Labels?": "?{str}",
    },
    "RootFS": {"Type": "str", "Layers?": "[str]"},
    "Metadata": {"LastTagTime": "time"},
    "Image": {
        **fields(
            str="Id Parent Comment DockerVersion Author Architecture Os Variant? OsVersion? Container<1.45",
            int="Size VirtualSize<1.44", time="Created?",
        ),
        "RepoTags": "[str]", "RepoDigests": "[str]", "Config": "?ImageConfig", "ContainerConfig<1.45": "?ImageConfig",
        "GraphDriver": "GraphDriver", "RootFS": "RootFS", "Metadata": "Metadata", "Descriptor?>1.48": "Descriptor",
        "Manifests?": "[any]",
    },
    "Ipam": {"Driver": "str", "Options": "?{str}", "Config": "?[Pool]"},
    "Pool": {**fields(str="Subnet? Gateway? IPRange?"), "AuxiliaryAddresses?": "{str}"},
    "Attached": fields(str="Name EndpointID MacAddress IPv4Address IPv6Address"),
    "Network": {
        **fields(str="Name Id Scope Driver", bool="EnableIPv4>1.48 EnableIPv6 Internal Attachable Ingress ConfigOnly"),
        "Created": "time", "IPAM": "Ipam", "ConfigFrom": "{str}", "Containers": "?{Attached}", "Options": "?{str}",
        "Labels": "?{str}",
    },
    "VolumeUsage": {"Size": "int", "RefCount": "int"},
    "Volume": {
        **fields(str="Name Driver Mountpoint Scope", time="CreatedAt"), "Labels": "?{str}", "Options": "?{str}",
        "Status?": "{any}", "UsageData?": "VolumeUsage",
    },
    "Volumes": {"Volumes": "?[Volume]", "Warnings": "?[str]"},
    "Usage": {
        "LayersSize": "int", "Images": "?[ListedImage]", "Containers": "?[Listed]", "Volumes": "?[Volume]",
        "BuildCache": "?[any]", "BuilderSize<1.42": "int", "ImageUsage?": "any", "ContainerUsage?": "any",
        "VolumeUsage?": "any", "BuildCacheUsage?": "any",
    },
    "Component": {"Name": "str", "Version": "str", "Details": "{str}"},
    "Version": {
        **fields(str="Version ApiVersion MinAPIVersion GitCommit GoVersion Os Arch KernelVersion? "
                 "Experimental? BuildTime?"),
        "Platform": "{str}", "Components": "[Component]",
    },
    "Made": {"Id": "str", "Warnings": "?[str]"},
    "Id": {"Id": "str"},
    "MadeNetwork": {"Id": "str", "Warning": "str"},
    "Warnings": {"Warnings": "?[str]"},
    "Exit": {"StatusCode": "int", "Error?": "?any"},
    "PrunedCache": {"CachesDeleted": "?[str]", "SpaceReclaimed": "int"},
    "PrunedContainers": {"ContainersDeleted": "?[str]", "SpaceReclaimed": "int"},
    "PrunedImages": {"ImagesDeleted": "?[Deleted]", "SpaceReclaimed": "int"},
    "PrunedNetworks": {"NetworksDeleted": "?[str]"},
    "PrunedVolumes": {"VolumesDeleted": "?[str]", "SpaceReclaimed": "int"},
    "Plugins": {**dict.fromkeys(("Volume", "Network", "Log"), "[str]"), "Authorization": "?[str]"},
    "Runtime": {"path?": "str", "runtimeArgs?": "[str]", "status?": "{str}"},
    "Commit": {"ID": "str", "Expected?": "str"},
    "Index": {"Name": "str", "Mirrors": "?[str]", "Secure": "bool", "Official": "bool"},
    "Registries": {
        **dict.fromkeys(("InsecureRegistryCIDRs", "Mirrors"), "?[str]"), "IndexConfigs": "{Index}",
        "AllowNondistributableArtifactsCIDRs?": "?[str]", "AllowNondistributableArtifactsHostnames?": "?[str]",
    },
    "Swarm": {
        **fields(str="LocalNodeState NodeID NodeAddr Error", bool="ControlAvailable"), "RemoteManagers": "?[any]"
    },
    "Info": {
        **fields(
            str="ID Driver LoggingDriver CgroupDriver CgroupVersion KernelVersion OperatingSystem OSVersion OSType "
            "Architecture IndexServerAddress HttpProxy HttpsProxy NoProxy Name ServerVersion DefaultRuntime Isolation "
            "InitBinary DockerRootDir SystemTime",
            bool="MemoryLimit SwapLimit CpuCfsPeriod CpuCfsQuota CPUShares CPUSet PidsLimit OomKillDisable "
            "IPv4Forwarding ExperimentalBuild LiveRestoreEnabled Debug KernelMemory<1.42 KernelMemoryTCP? "
            "BridgeNfIptables? BridgeNfIp6tables?",
            int="NCPU MemTotal Containers ContainersRunning ContainersPaused ContainersStopped Images NFd NGoroutines "
            "NEventsListener",
        ),
        "DriverStatus": "?[[str]]", "Plugins": "Plugins", "GenericResources": "?[any]", "Labels": "?[str]",
        "Runtimes": "{Runtime}", "Swarm": "Swarm", "ContainerdCommit": "Commit", "RuncCommit": "Commit",
        "InitCommit": "Commit", "SecurityOptions": "?[str]", "DefaultAddressPools?": "[any]",
        "CDISpecDirs>1.44": "?[str]",        "FirewallBackend?": "any", "Containerd?": "any",
        "Warnings": "?[str]", "RegistryConfig": "?Registries",
    },
}  # fmt: skip

_NAME = r"[^/]+"
ANSWERS: tuple[tuple[str, str, str], ...] = tuple(
    tuple(line.split())  # type: ignore[misc]  # each line has three words
    for line in """
        GET /version Version
        GET /info Info
        GET /system/df Usage
        GET /containers/json [Listed]
        POST /containers/create Made
        GET /containers/NAME/json Container
        GET /containers/NAME/top Top
        GET /containers/NAME/changes ?[Change]
        GET /containers/NAME/stats Stats
        POST /containers/NAME/update Warnings
        POST /containers/NAME/wait Exit
        POST /containers/prune PrunedContainers
        POST /containers/NAME/exec Id
        GET /exec/NAME/json Exec
        GET /images/json [ListedImage]
        GET /images/NAME/json Image
        GET /images/NAME/history [Layer]
        DELETE /images/NAME [Deleted]
        POST /images/prune PrunedImages
        POST /commit Id
        POST /build/prune PrunedCache
        GET /networks [Network]
        GET /networks/NAME Network
        POST /networks/create MadeNetwork
        POST /networks/prune PrunedNetworks
        GET /volumes Volumes
        POST /volumes/create Volume
        GET /volumes/NAME Volume
        POST /volumes/prune PrunedVolumes
        GET /plugins ?[any]
    """.strip().splitlines()
)  # fmt: skip
"""(method, path, type) of each answer with JSON in it; the first that fits counts."""


def kind_of(method: str, path: str, status: int) -> str | None:
    """The type of an answer's body; None where it has none that is JSON."""
    if status >= 400:
        return "Error" if method != "HEAD" else None
    bare = path.partition("?")[0]
    for known, pattern, kind in ANSWERS:
        if known == method and re.fullmatch(pattern.replace("NAME", _NAME), bare):
            return kind
    return None


def problems(value: Any, kind: str, version: Version, path: str = "") -> Iterator[str]:
    """Where ``value`` is not of ``kind`` in an answer of API ``version``."""
    if kind.startswith("?"):
        if value is not None:
            yield from problems(value, kind[1:], version, path)
    elif kind == "time":
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            yield f"{path}: {value!r} is no time"
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{path}: {value!r} is no {kind}"
    elif kind.startswith("["):
        for entry in value if isinstance(value, list) else ():
            yield from problems(entry, kind[1:-1], version, f"{path}[]")
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
    elif kind.startswith("{"):
        for name, entry in value.items() if isinstance(value, dict) else ():
            yield from problems(entry, kind[1:-1], version, f"{path}.{name}")
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no object"
    elif kind != "any":
        yield from _misshapen(value, SHAPES[kind], version, path)


def _misshapen(value: Any, shape: dict[str, str], version: Version, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no object"
        return
    unknown = set(value)
    for written, kind in shape.items():
        match = _FIELD.fullmatch(written)
        assert match is not None, written
        name, optional, sign, major, minor = match.groups()
        unknown.discard(name)
        if name in value:
            yield from problems(value[name], kind, version, f"{path}.{name}")
        elif not optional and (sign is None or (sign == ">" and version >= (int(major), int(minor)))):
            yield f"{path}.{name} is missing"
    yield from (f"{path}.{name} is no field of it" for name in sorted(unknown))
