"""What containerd-py was started with."""

from __future__ import annotations

from typing import NamedTuple


class Tcp(NamedTuple):
    """Where to listen (``HOST:PORT``; "" for nowhere), and PEM files: our certificate, its key, the clients' CA."""

    address: str = ""
    certificate: str = ""
    key: str = ""
    authority: str = ""
    insecure: bool = False
    """Whether strangers on the network are wanted."""


class Settings(NamedTuple):
    """What the command line and the configuration file say. Paths are absolute; ``address`` is a plain path."""

    root: str
    state: str
    address: str
    log_level: str
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    tcp: Tcp = Tcp()
    metrics_address: str = ""
    grpc_histogram: bool = False

    @property
    def ttrpc_address(self) -> str:
        return f"{self.address}.ttrpc"

    @property
    def pidfile(self) -> str:
        return f"{self.state}/containerd.pid"

    @property
    def helper_log(self) -> str:
        """Where zygote, keeper and shims write what goes wrong."""
        return f"{self.root}/shim.log"
