"""The container service: the heart of the Docker API, as ``engine.api`` calls it.

Rule: this class only wires; what is done to containers is in the modules around it, one per thing done.
"""

from __future__ import annotations

from engine.backend import Backend
from engine.containers.exec import Execs
from engine.containers.logs import Logs
from engine.containers.registry import Registry
from engine.events import EventBus
from engine.interfaces import Images, Networks
from engine.store import Store
from oci.hostpaths import HostPaths


class ContainerService(Registry):
    """All containers of this engine. Shared state and look-ups are in ``Registry``."""

    def __init__(
        self, store: Store, backend: Backend, bus: EventBus, images: Images, networks: Networks, paths: HostPaths
    ) -> None:
        super().__init__(store, backend, bus, images, networks, paths)
        self.execs = Execs(self)
        self.logs = Logs(self)
