"""gantryd's flags and daemon.json, under the names dockerd gave them.

Rule: a flag beats the file, the file beats the default, and an option in both with different values is refused, as
dockerd does. An option that is known to Docker but not built here is an error, never ignored.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import msgspec

from oci.errors import InvalidArgument
from oci.hostpaths import HostPaths, default_paths

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
}
"""daemon.json's keys and the flag each one is."""


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


def parser() -> argparse.ArgumentParser:
    """The command line of gantryd."""
    out = argparse.ArgumentParser("gantryd", description="The Gantry engine: speaks the Docker Engine API.")
    add = out.add_argument
    add("-H", "--host", action="append", metavar="URL", help="listen here: unix://PATH or tcp://127.0.0.1:PORT")
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
    add("-v", "--version", action="store_true")
    return out


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
    )
