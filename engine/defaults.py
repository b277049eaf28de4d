"""What containers get that do not ask: daemon.json's defaults, and the runtimes they may name.

Rule: a default fills in what a create request leaves open, at the create; containers that exist keep what they have.
Source: dockerd(8), daemon configuration file.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import msgspec

from engine.containers.config import HostConfig, LogConfig, Ulimit
from engine.containers.logoptions import check_options, parse_size
from engine.spec.defaults import SHM_SIZE
from oci.errors import InvalidArgument

OWN_RUNTIME = "runc-py"
KNOWN_RUNTIMES = ("runc", "crun")
"""Programs that may be named without being configured, where they are installed."""
SHIM_NAMES = {"io.containerd.py.v2": OWN_RUNTIME, "io.containerd.runc.v2": "runc"}
"""What clients of containerd call a runtime; each runs under the engine's own shim, which keeps logs and streams."""
MODES = {"default-ipc-mode": ("private", "shareable"), "default-cgroupns-mode": ("private", "host")}


class Defaults(msgspec.Struct, frozen=True):
    """``runtimes`` is the path of the OCI runtime for each further name; sizes in bytes; "" and None: Docker's own."""

    log_config: LogConfig = LogConfig("json-file", {})
    ulimits: tuple[Ulimit, ...] = ()
    shm_size: int = SHM_SIZE
    runtime: str = OWN_RUNTIME
    runtimes: dict[str, str] = {}
    init: bool | None = None
    no_new_privileges: bool = False
    ipc_mode: str = "private"
    cgroupns_mode: str = ""

    def binary(self, name: str) -> str:
        """The OCI runtime for ``HostConfig.Runtime``: a path, or a name to be looked for on PATH.

        Raises ``InvalidArgument`` for a name nobody knows.
        """
        name = SHIM_NAMES.get(name, name)
        if name in self.runtimes:
            return self.runtimes[name]
        if name == OWN_RUNTIME or name in KNOWN_RUNTIMES:
            return name
        known = ", ".join((OWN_RUNTIME, *KNOWN_RUNTIMES, *self.runtimes))
        if name.startswith("io.containerd."):
            raise InvalidArgument(
                f"unknown or invalid runtime name: {name}: the engine keeps logs and streams in its own shim",
                hint=f'name the OCI runtime instead ({known}), or configure its path: "runtimes" in daemon.json',
            )
        raise InvalidArgument(f"unknown or invalid runtime name: {name}", hint=f"use one of {known}")

    def installed(self) -> dict[str, dict[str, str]]:
        """``Runtimes`` of ``GET /info``: ours, the configured ones, and the others that are installed."""
        found = {name: shutil.which(name) for name in KNOWN_RUNTIMES}
        known = {OWN_RUNTIME: OWN_RUNTIME} | {name: path for name, path in found.items() if path} | self.runtimes
        return {name: {"path": path} for name, path in known.items()}

    def log(self, asked: LogConfig) -> LogConfig:
        """``asked`` with the default driver, and the default options where it is that driver."""
        driver = asked.type or self.log_config.type
        options = self.log_config.config or {} if driver == self.log_config.type else {}
        return LogConfig(driver, {**options, **(asked.config or {})})

    def limits(self, asked: tuple[Ulimit, ...] | None) -> tuple[Ulimit, ...] | None:
        """``asked`` and the default limits of other names."""
        names = {limit.name for limit in asked or ()}
        further = tuple(limit for limit in self.ulimits if limit.name not in names)
        return (*(asked or ()), *further) if further else asked

    def security(self, asked: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """``asked``, with ``no-new-privileges`` where that is the default and nothing is said of it."""
        if not self.no_new_privileges or any(option.startswith("no-new-privileges") for option in asked or ()):
            return asked
        return (*(asked or ()), "no-new-privileges")

    def init_of(self, host: HostConfig) -> bool | None:
        """Whether a container gets an init process; None when nobody said."""
        return self.init if host.init is None else host.init


def defaults_of(values: dict[str, Any]) -> Defaults:
    """From values by daemon.json's keys, None where nothing is said. Raises ``InvalidArgument`` naming the key."""
    log = LogConfig(values.get("log-driver") or "json-file", _pairs("log-opts", values.get("log-opts")))
    check_options(log.type, log.config or {})
    for key, allowed in MODES.items():
        if values.get(key) not in (None, "", *allowed):
            raise _wrong(key, values[key], f"use one of {', '.join(allowed)}")
    made = Defaults(
        log_config=log,
        ulimits=_ulimits(values.get("default-ulimits")),
        shm_size=_shm_size(values.get("default-shm-size")),
        runtime=values.get("default-runtime") or OWN_RUNTIME,
        runtimes=_runtimes(values.get("runtimes")),
        init=values.get("init"),
        no_new_privileges=bool(values.get("no-new-privileges")),
        ipc_mode=values.get("default-ipc-mode") or "private",
        cgroupns_mode=values.get("default-cgroupns-mode") or "",
    )
    made.binary(made.runtime)
    return made


def _wrong(key: str, value: Any, hint: str) -> InvalidArgument:
    return InvalidArgument(f"option {key}: {value!r} is not possible", hint=hint)


def _pairs(key: str, value: Any) -> dict[str, str]:
    """An object of the file, or ``name=value`` texts of flags."""
    if isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values()):
        return dict(value)
    if isinstance(value, (list, tuple)) and all(isinstance(entry, str) and "=" in entry for entry in value):
        return {name: text for name, _, text in (entry.partition("=") for entry in value)}
    if value is None:
        return {}
    raise _wrong(key, value, "give texts by their names")


def _shm_size(value: Any) -> int:
    if value is None:
        return SHM_SIZE
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    try:
        return parse_size(str(value))
    except InvalidArgument:
        raise _wrong("default-shm-size", value, "give a size as 64M") from None


def _ulimits(value: Any) -> tuple[Ulimit, ...]:
    """``{"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}}`` of the file, or ``nofile=1:2`` of flags."""
    if isinstance(value, dict):
        return tuple(_ulimit(name, limit) for name, limit in value.items())
    found = []
    for name, text in _pairs("default-ulimits", value).items():
        soft, _, hard = text.partition(":")
        try:
            found.append(Ulimit(name=name, soft=int(soft), hard=int(hard or soft)))
        except ValueError:
            raise _wrong("default-ulimits", f"{name}={text}", "give name=soft:hard in numbers") from None
    return tuple(found)


def _ulimit(name: str, value: Any) -> Ulimit:
    soft, hard = (value.get("Soft"), value.get("Hard")) if isinstance(value, dict) else (None, None)
    if not isinstance(soft, int) or not isinstance(hard, int):
        raise _wrong("default-ulimits", {name: value}, 'give {"Name": …, "Soft": N, "Hard": N}')
    return Ulimit(name=name, soft=soft, hard=hard)


def _runtimes(value: Any) -> dict[str, str]:
    """``{"name": {"path": "/usr/bin/x"}}`` of the file, or ``name=/usr/bin/x`` of flags."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(entry, dict) or set(entry) != {"path"} or not isinstance(entry["path"], str):
                hint = 'give {"path": PROGRAM}; arguments go into a script of yours'
                raise _wrong("runtimes", {name: entry}, hint)
        value = [f"{name}={entry['path']}" for name, entry in value.items()]
    named = _pairs("runtimes", value)
    for name, path in named.items():
        if name == OWN_RUNTIME or name in SHIM_NAMES:
            raise _wrong("runtimes", name, "the name is taken: choose another")
        if os.sep in path and not os.access(path, os.X_OK):
            raise _wrong("runtimes", f"{name}={path}", "there is no such program: install it or correct the path")
    return named
