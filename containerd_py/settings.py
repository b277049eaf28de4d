"""What containerd-py was started with."""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """What the command line and the configuration file say. Paths are absolute; ``address`` is a plain path."""

    root: str
    state: str
    address: str
    log_level: str
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()

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
