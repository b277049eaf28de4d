"""gantryd's flags and daemon.json, under the names dockerd gave them.

Rule: a flag beats the file, the file beats the default, and an option in both with different values is refused, as
dockerd does. An option that is known to Docker but not built here is an error, never ignored.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.defaults import Defaults, defaults_of
from oci.errors import InvalidArgument, PermissionDenied
from oci.hostpaths import HostPaths, default_paths

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
CONFIG_FILE = "/etc/gantry/daemon.json"

FLAG_OF_KEY = {
    "hosts": "host",
    "data-root": "data_root",
    "exec-root": "exec_root",
    "containerd": "containerd",
    "pidfile": "pidfile",
    "group": "group",
    "debug": "debug",
    "log-level": "log_level",
    "bridge": "bridge",
    "bip": "bip",
    "mtu": "mtu",
    "insecure-registries": "insecure_registry",
    "registry-mirrors": "registry_mirror",
    "default-address-pools": "default_address_pool",
    "dns": "dns",
    "dns-search": "dns_search",
    "dns-opts": "dns_opt",
    "ip": "ip",
    "ipv6": "ipv6",
    "icc": "icc",
    "ip-masq": "ip_masq",
    "iptables": "iptables",
    "ip-forward": "ip_forward",
    "fixed-cidr": "fixed_cidr",
    "fixed-cidr-v6": "fixed_cidr_v6",
    "host-gateway-ip": "host_gateway_ip",
    "tls": "tls",
    "tlsverify": "tlsverify",
    "tlscacert": "tlscacert",
    "tlscert": "tlscert",
    "tlskey": "tlskey",
    "insecure-tcp": "insecure_tcp",
    "cgroup-parent": "cgroup_parent",
    "log-driver": "log_driver",
    "log-opts": "log_opt",
    "default-ulimits": "default_ulimit",
    "default-shm-size": "default_shm_size",
    "default-ipc-mode": "default_ipc_mode",
    "default-cgroupns-mode": "default_cgroupns_mode",
    "default-runtime": "default_runtime",
    "runtimes": "add_runtime",
    "init": "init",
    "no-new-privileges": "no_new_privileges",
    "labels": "label",
    "live-restore": "live_restore",
    "storage-driver": "storage_driver",
}
"""daemon.json's keys and the flag each one is."""


class TlsFiles(msgspec.Struct, frozen=True):
    """TLS of TCP listeners: ``on``, whether clients are verified, and the PEM files."""

    on: bool = False
    verify: bool = False
    authority: str = ""
    certificate: str = ""
    key: str = ""


class Config(msgspec.Struct, frozen=True):
    """Everything the daemon was told. ``hosts`` are URLs (``unix://``, ``tcp://``)."""

    paths: HostPaths
    hosts: tuple[str, ...]
    containerd: str = ""
    pidfile: str = ""
    group: str = "docker"
    debug: bool = False
    log_level: str = "info"
    bridge: str = ""
    bip: str = ""
    mtu: int = 1500
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    address_pools: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    ip: str = ""
    ipv6: bool = False
    icc: bool = True
    ip_masq: bool = True
    iptables: bool = True
    ip_forward: bool = True
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    host_gateway_ip: tuple[str, ...] = ()
    tls: TlsFiles = TlsFiles()
    insecure_tcp: bool = False
    cgroup_parent: str = ""
    defaults: Defaults = Defaults()
    labels: tuple[str, ...] = ()


def parser() -> argparse.ArgumentParser:
    """The command line of gantryd."""
    out = argparse.ArgumentParser("gantryd", description="The Gantry engine: speaks the Docker Engine API.")
    add = out.add_argument
    add("-H", "--host", action="append", metavar="URL", help="listen here: unix://PATH, tcp://ADDRESS:PORT or fd://")
    add("--data-root", metavar="DIR", help="images, containers and volumes")
    add("--exec-root", metavar="DIR", help="sockets, pid files and other run-time state")
    add("--containerd", metavar="SOCKET", help="use this containerd instead of starting containerd-py")
    add("--config-file", metavar="FILE", help=f"JSON with the same options (default {CONFIG_FILE})")
    add("-p", "--pidfile", metavar="FILE")
    add("-G", "--group", metavar="NAME", help="group of the unix socket (default docker)")
    add("-D", "--debug", action="store_true", default=None)
    add("-l", "--log-level", choices=("debug", "info", "warn", "error", "fatal"))
    add("-b", "--bridge", metavar="NAME", help="name of the default bridge")
    add("--bip", metavar="CIDR", help="address of the default bridge")
    add("--mtu", type=int, metavar="BYTES")
    add("--insecure-registry", action="append", metavar="HOST[:PORT]")
    add("--registry-mirror", action="append", metavar="URL")
    add("--default-address-pool", action="append", metavar="base=CIDR,size=N")
    add("--dns", action="append", metavar="ADDRESS")
    add("--dns-search", action="append", metavar="DOMAIN")
    add("--dns-opt", action="append", metavar="OPTION")
    add("--ip", metavar="ADDRESS", help="where ports are published that name no address (default 0.0.0.0)")
    switch: dict[str, Any] = {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    add("--ipv6", **switch, help="give the default bridge IPv6 as well")
    add("--icc", **switch, help="let containers of the default bridge reach each other (default true)")
    add("--ip-masq", **switch, help="let containers out under the host's address (default true)")
    add("--iptables", **switch, help="firewall rules and published ports, made with nftables (default true)")
    add("--ip-forward", **switch, help="switch forwarding on (default true)")
    add("--fixed-cidr", metavar="CIDR", help="the part of the default bridge's subnet to give addresses from")
    add("--fixed-cidr-v6", metavar="CIDR", help="the default bridge's IPv6 subnet")
    add("--host-gateway-ip", action="append", metavar="ADDRESS", help="what host-gateway of --add-host stands for")
    add("--tls", action="store_true", default=None, help="TLS on TCP; any client may connect")
    add("--tlsverify", action="store_true", default=None, help="TLS on TCP; clients need a certificate")
    add("--tlscacert", metavar="FILE", help="authority that signed the clients' certificates (default DIR/ca.pem)")
    add("--tlscert", metavar="FILE", help="our certificate (default DIR/server-cert.pem or DIR/cert.pem)")
    add("--tlskey", metavar="FILE", help="our key (default DIR/server-key.pem or DIR/key.pem)")
    add("--cgroup-parent", metavar="PATH", help="where the cgroups of containers are made (default /docker)")
    add("--insecure-tcp", action="store_true", default=None, help="allow TCP without TLS beyond this machine")
    _add_defaults(add, switch)
    add("-v", "--version", action="store_true")
    out.epilog = "DIR is $DOCKER_CERT_PATH, else ~/.docker"
    return out


def _add_defaults(add: Callable[..., object], switch: dict[str, Any]) -> None:
    """What containers get that do not ask, and what info tells."""
    add("--log-driver", metavar="NAME", help="log driver of containers that name none (default json-file)")
    add("--log-opt", action="append", metavar="NAME=VALUE", help="its options")
    add("--default-ulimit", action="append", metavar="NAME=SOFT:HARD")
    add("--default-shm-size", metavar="SIZE", help="size of /dev/shm (default 64M)")
    add("--default-ipc-mode", metavar="MODE", help="private (default) or shareable")
    add("--default-cgroupns-mode", metavar="MODE", help="private or host")
    add("--default-runtime", metavar="NAME", help="OCI runtime of containers that name none (default runc-py)")
    add("--add-runtime", action="append", metavar="NAME=PATH", help="a further OCI runtime")
    add("--init", action="store_true", default=None, help="an init process in every container")
    add("--no-new-privileges", action="store_true", default=None, help="set in every container")
    add("--label", action="append", metavar="KEY=VALUE", help="a label of the engine, shown by info")
    add("--live-restore", **switch, help="always true: containers outlive the daemon")
    add("-s", "--storage-driver", metavar="NAME", help="overlay2, which is the only one")


def _boolean(text: str) -> bool:
    if text not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text in ("true", "1")


def _truth(value: Any, default: bool) -> bool:
    return default if value is None else bool(value)


def _texts(value: Any) -> tuple[str, ...]:
    """A list of the file, or one text in the place of a list."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _read_file(path: str, required: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            decoded = msgspec.json.decode(file.read() or b"{}", type=dict[str, Any])
    except FileNotFoundError:
        if required:
            raise InvalidArgument(f"config file {path} does not exist", hint="check --config-file") from None
        return {}
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"config file {path} is not a JSON object: {error}") from None
    unknown = sorted(set(decoded) - set(FLAG_OF_KEY))
    if unknown:
        raise InvalidArgument(
            f"config file {path} has options this engine does not support: {', '.join(unknown)}",
            hint=f"supported: {', '.join(sorted(FLAG_OF_KEY))}",
        )
    if isinstance(decoded.get("default-address-pools"), list):
        decoded["default-address-pools"] = [
            pool if isinstance(pool, str) else f"base={pool.get('base')},size={pool.get('size')}"
            for pool in decoded["default-address-pools"]
        ]
    return decoded


def load(argv: list[str]) -> Config:
    """The configuration from flags and file; raises ``InvalidArgument``; exits on ``--help`` as argparse does."""
    flags = parser().parse_args(argv)
    from_file = _read_file(flags.config_file or CONFIG_FILE, required=flags.config_file is not None)
    values: dict[str, Any] = {}
    for key, attribute in FLAG_OF_KEY.items():
        given = getattr(flags, attribute)
        if given is not None and key in from_file and from_file[key] != given:
            raise InvalidArgument(
                f"option {key} is given as a flag ({given}) and in the config file ({from_file[key]})",
                hint="remove one of them",
            )
        values[attribute] = given if given is not None else from_file.get(key)
    defaults = default_paths()
    paths = HostPaths(
        os.path.abspath(values["data_root"] or defaults.data_root),
        os.path.abspath(values["exec_root"] or defaults.exec_root),
    )
    _refuse_other_ways(values)
    debug = bool(values["debug"])
    return Config(
        paths=paths,
        hosts=tuple(values["host"] or (f"unix://{paths.engine_socket}",)),
        containerd=values["containerd"] or "",
        pidfile=values["pidfile"] or paths.engine_pidfile,
        group=values["group"] if values["group"] is not None else "docker",
        debug=debug,
        log_level="debug" if debug else values["log_level"] or "info",
        bridge=values["bridge"] or "",
        bip=values["bip"] or "",
        mtu=values["mtu"] or 1500,
        insecure_registries=tuple(values["insecure_registry"] or ()),
        registry_mirrors=tuple(values["registry_mirror"] or ()),
        address_pools=tuple(values["default_address_pool"] or ()),
        dns=tuple(values["dns"] or ()),
        dns_search=_texts(values["dns_search"]),
        dns_opt=_texts(values["dns_opt"]),
        ip=values["ip"] or "",
        ipv6=_truth(values["ipv6"], False),
        icc=_truth(values["icc"], True),
        ip_masq=_truth(values["ip_masq"], True),
        iptables=_truth(values["iptables"], True),
        ip_forward=_truth(values["ip_forward"], True),
        fixed_cidr=values["fixed_cidr"] or "",
        fixed_cidr_v6=values["fixed_cidr_v6"] or "",
        host_gateway_ip=_texts(values["host_gateway_ip"]),
        tls=_tls_files(values),
        insecure_tcp=bool(values["insecure_tcp"]),
        cgroup_parent=values["cgroup_parent"] or "",
        defaults=defaults_of({key: values[attribute] for key, attribute in FLAG_OF_KEY.items()}),
        labels=_texts(values["label"]),
    )


def _refuse_other_ways(values: dict[str, Any]) -> None:
    """Options of Docker's that are taken for what they ask here only when that is what happens."""
    if values["live_restore"] is False:
        raise InvalidArgument(
            "option live-restore: false is not possible: containers always outlive this engine",
            hint="stop them with 'gantry down'",
        )
    if values["storage_driver"] not in (None, "", "overlay2", "overlayfs"):
        raise InvalidArgument(
            f"option storage-driver: {values['storage_driver']!r} is not built",
            hint="leave it out: layers are overlays",
        )


LIVE = ("debug", "log_level", "insecure_registries", "registry_mirrors", "defaults", "labels")
"""Fields of ``Config`` that take effect on SIGHUP; the others wait for the next start."""


def reloaded(running: Config, file: Config) -> Config:
    """``running`` with what can change while the daemon runs taken from ``file``."""
    return msgspec.structs.replace(running, **{name: getattr(file, name) for name in LIVE})


def registry_flags(config: Config) -> tuple[str, ...]:
    """The flags that tell containerd-py of registries."""
    insecure = (part for host in config.insecure_registries for part in ("--insecure-registry", host))
    return (*insecure, *(part for url in config.registry_mirrors for part in ("--registry-mirror", url)))


def refuse_plain_tcp(url: str, config: Config) -> None:
    """Raises ``PermissionDenied`` for TCP in the clear beyond this machine, unless that was asked for by name."""
    parts = urlsplit(url)
    if parts.scheme != "tcp" or config.tls.on or config.insecure_tcp or (parts.hostname or "127.0.0.1") in LOOPBACK:
        return
    raise PermissionDenied(
        f"refusing to listen on {url} without TLS: whoever reaches the port owns this host",
        hint="use --tlsverify with certificates ('gantry certs init' makes them), listen on 127.0.0.1, or say"
        " --insecure-tcp if the network is truly yours",
    )


def _tls_files(values: dict[str, Any]) -> TlsFiles:
    """What the ``tls*`` options mean: one of them switches TLS on, as with dockerd."""
    if not any(values[key] for key in ("tls", "tlsverify", "tlscacert", "tlscert", "tlskey")):
        return TlsFiles()
    directory = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")

    def default(*names: str) -> str:
        found = (f"{directory}/{name}" for name in names if os.path.exists(f"{directory}/{name}"))
        return next(found, f"{directory}/{names[-1]}")

    return TlsFiles(
        on=True,
        verify=bool(values["tlsverify"] or values["tlscacert"]),
        authority=values["tlscacert"] or default("ca.pem"),
        certificate=values["tlscert"] or default("server-cert.pem", "cert.pem"),
        key=values["tlskey"] or default("server-key.pem", "key.pem"),
    )
