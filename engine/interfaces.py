"""The seams inside the engine: what containers need of images and networks, and what every API module is given.

Rule: rooms below ``engine/`` know each other only through these protocols and value types; ``engine.app`` wires them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from oci.image import Descriptor, ImageConfig, Platform


class LocalImage(msgspec.Struct, frozen=True):
    """An image that is here and unpacked for this machine's platform.

    ``id`` is the config digest (Docker's image id), ``chain_id`` the committed snapshot to build a rootfs on ("" for an
    image without layers), ``reference`` the familiar name it was asked by.
    """

    id: str
    reference: str
    target: Descriptor
    manifest: Descriptor
    config: ImageConfig
    chain_id: str
    snapshotter: str


class Images(Protocol):
    """The image store as containers see it."""

    async def resolve(self, reference: str, platform: Platform | None = None) -> LocalImage:
        """The image named by ``reference`` (name, id, id prefix) for ``platform``, unpacked if it was not.

        Raises ``NotFound("No such image: busybox:latest")``: docker CLI then pulls.
        """

    async def in_use(self, image_id: str) -> bool:
        """Whether a container was made from ``image_id`` (wired to the container store)."""


class ContainerUse(Protocol):
    """What the image store asks of containers before it removes an image."""

    def users_of_image(self, image_id: str) -> list[tuple[str, bool]]:
        """(container id, running) of every container made from ``image_id``."""


class PortBinding(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """One entry of ``HostConfig.PortBindings``: text as in Docker's JSON; empty port means any, ranges allowed."""

    host_ip: str = msgspec.field(default="", name="HostIp")
    host_port: str = ""


class SandboxRequest(msgspec.Struct, frozen=True):
    """All a network needs to know about a container.

    ``mode`` is ``HostConfig.NetworkMode`` resolved to ``bridge``, ``none``, ``host``, ``container:<64-hex>`` or a
    network name. ``links`` are ``HostConfig.Links`` (``name:alias``). ``endpoints`` is
    ``NetworkingConfig.EndpointsConfig`` as given (Docker's JSON objects by network name).
    Ports are keyed ``80/tcp``.
    """

    container_id: str
    name: str
    hostname: str
    mode: str
    exposed_ports: tuple[str, ...] = ()
    port_bindings: dict[str, tuple[PortBinding, ...]] = {}
    publish_all: bool = False
    endpoints: dict[str, dict[str, Any]] = {}
    mac_address: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    domainname: str = ""


class SandboxFiles(msgspec.Struct, frozen=True):
    """Contents of the container's ``/etc/hosts`` and ``/etc/resolv.conf``."""

    hosts: str
    resolv_conf: str


class Networks(Protocol):
    """Network sandboxes of containers. Every method is idempotent; state survives the daemon in ``engine.db``.

    Life cycle: ``validate`` at container create; at start ``open_sandbox`` (fast: a pinned namespace), then
    ``connect`` in parallel with the task's creation, awaited before the task starts; ``close_sandbox`` when the
    container has ended.
    """

    def validate(self, request: SandboxRequest) -> None:
        """Refuse what cannot work, before anything is stored (``NotFound("network x not found")``, bad ports …)."""

    async def open_sandbox(self, request: SandboxRequest) -> str | None:
        """Path of the container's network namespace; None when it shares the host's.

        For ``container:<id>`` the path of that container's namespace.
        """

    async def connect(self, request: SandboxRequest) -> SandboxFiles:
        """Interfaces, addresses, routes, firewall and published ports. Undoes itself on failure.

        Raises ``FailedPrecondition``/``Internal`` in Docker's words, e.g. ``driver failed programming external
        connectivity on endpoint NAME: … Bind for 0.0.0.0:8080 failed: port is already allocated``.
        """

    def link_environment(
        self, request: SandboxRequest, environments: Callable[[str], Sequence[str]]
    ) -> tuple[str, ...]:
        """The variables that ``--link`` adds (``ALIAS_PORT_80_TCP=tcp://…``), to stand before the container's own.

        ``environments(container id)`` is the ``Env`` of a linked container. Raises ``FailedPrecondition("Cannot link to
        a non running container: …")``.
        """

    async def close_sandbox(self, container_id: str) -> None:
        """Remove everything ``open_sandbox`` and ``connect`` made."""

    def settings(self, request: SandboxRequest) -> dict[str, Any]:
        """``NetworkSettings`` of container inspect, Docker's JSON keys; empty addresses while stopped."""

    def revision(self, container_id: str) -> tuple[object, ...]:
        """While this is equal, ``settings`` and ``port_list`` answer the same for the same request."""

    async def rename(self, container_id: str, name: str) -> None:
        """The container has another name from now on."""

    def port_list(self, container_id: str, exposed_ports: Iterable[str]) -> list[dict[str, Any]]:
        """``Ports`` of container list: objects of ``IP``, ``PrivatePort``, ``PublicPort``, ``Type``."""

    def forget(self, container_id: str) -> None:
        """A container is removed for good: forget networks connected to it by API. Idempotent."""

    async def restore(self, alive: frozenset[str]) -> None:
        """At daemon start: keep the sandboxes of ``alive`` containers (ports reserved again), sweep all others."""


class NetworkTarget(msgspec.Struct, frozen=True):
    """A container as connect and disconnect need it."""

    request: SandboxRequest
    running: bool


class ContainerDirectory(Protocol):
    """What networks ask of containers; set ``NetworkService.containers`` once both exist."""

    def network_target(self, reference: str) -> NetworkTarget:
        """The container with this name or id; raises ``NotFound("No such container: x")``."""
