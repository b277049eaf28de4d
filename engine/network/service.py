"""Networks of containers: the engine's one door to bridges, addresses and published ports.

Rule: bookkeeping happens on the event loop and is never awaited half done; the kernel's part runs on one worker thread
in the order it was asked for. A record is on disk before what it describes is made, so ``restore`` can finish or
undo whatever a kill interrupted; traffic needs no process of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import structlog

from engine.events import EventBus
from engine.interfaces import ContainerDirectory, NetworkTarget, SandboxFiles, SandboxRequest
from engine.network import attach, creation, files, following, hostfiles, names, netns, planning, retiring, views
from engine.network.creation import CreateRequest, vlan_parent
from engine.network.drivers import driver_of
from engine.network.firewall import PortRule
from engine.network.hostwatch import FileWatcher
from engine.network.kernel import HostKernel, stray_pins
from engine.network.model import Endpoint, Network, NetworkOptions, Sandbox
from engine.network.nameserver import NameServer
from engine.network.netlink import Netlink, NetlinkError
from engine.network.options import NetworkFlags, options_of
from engine.network.plans import HostPlan, PlugPlan
from engine.network.ports import PortTable
from engine.network.reaper import Reaper
from engine.network.registry import KIND as NETWORK_KIND
from engine.network.registry import NetworkRegistry
from engine.network.watcher import TableWatcher
from engine.store import Store
from oci.errors import FailedPrecondition, GantryError, Internal, NotFound, PermissionDenied, Unavailable

log = structlog.get_logger()

T = TypeVar("T")
R = TypeVar("R")

SANDBOX_KIND = "endpoint"
ATTACHMENT_KIND = "attachment"


async def both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Both side by side; when one fails the other is waited for, and the failure raised."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


class NetworkService:
    """Implements ``engine.interfaces.Networks`` and what ``engine.api.networks`` serves."""

    containers: ContainerDirectory | None = None

    def __init__(
        self, store: Store, bus: EventBus, exec_root: str, options: NetworkOptions | NetworkFlags | None = None
    ) -> None:
        """``exec_root`` holds ``netns/<container id>``. Touches neither kernel nor disk before ``start``."""
        self.options = options_of(options)
        self._store = store
        self._bus = bus
        self._exec_root = exec_root
        self._pins = f"{exec_root}/netns"
        self.registry = NetworkRegistry(store, self.options)
        self.ports = PortTable()
        self.kernel = HostKernel(self.options)
        self._worker = ThreadPoolExecutor(1, "network")
        self.reaper = Reaper(self.kernel, self.run, self.registry.release)
        self.retirement = retiring.Retirement(store, self.run, self.delete_links)
        self.nameserver = NameServer(f"{exec_root}/dns")
        self._sandboxes: dict[str, Sandbox] = {}
        self._attachments: dict[str, dict[str, dict[str, Any] | None]] = {}
        self._fresh: dict[str, Netlink] = {}
        self.planning = asyncio.Lock()
        self._host_ready = False
        self._started = False
        self._watcher = TableWatcher(self.options.table, self._mend)
        host_files = (files.RESOLV_CONF, files.SYSTEMD_RESOLV_CONF)
        self._host_files = FileWatcher(host_files, following.host_says, lambda: following.follow_host(self))

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """Run blocking kernel work on the worker thread, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)

    # Daemon life

    async def start(self) -> None:
        """Read the records and make sure of the predefined networks. Idempotent; ``restore`` calls it too."""
        if self._started:
            return
        self._started = True
        os.makedirs(self._pins, exist_ok=True)
        self._load()
        routed = await self._routed()
        before = self._default_plan()
        self.registry.ensure_predefined(routed, movable=not self._sandboxes)
        connecting = self.registry.connecting()
        await self.retirement.restore(self.kernel, {n.id for n in connecting}, {n.bridge for n in connecting})
        if before is not None and before != self._default_plan():
            # Another address or name: the bridge is made anew, or its old address would stay.
            with contextlib.suppress(OSError):
                await self.run(self.kernel.remove, before)

    def _default_plan(self) -> HostPlan | None:
        default = self.registry.named("bridge")
        return self.registry.host_plan(default) if default is not None else None

    def _load(self) -> None:
        for container_id, body in self._store.all(SANDBOX_KIND):
            sandbox = msgspec.json.decode(body, type=Sandbox)
            self._sandboxes[container_id] = sandbox
            for endpoint in sandbox.endpoints:
                with contextlib.suppress(GantryError):
                    planning.take(self.registry, endpoint)
        for container_id, body in self._store.all(ATTACHMENT_KIND):
            self._attachments[container_id] = msgspec.json.decode(body, type=dict[str, dict[str, Any] | None])

    async def _routed(self) -> list[Any]:
        own = [n.bridge for n in self.registry.connecting()] or [self.options.bridge]
        try:
            return await self.run(self.kernel.foreign_networks, own)
        except OSError as error:
            log.warning("cannot read this host's routes", error=str(error))
            return []

    async def restore(self, alive: frozenset[str]) -> None:
        """At daemon start: keep the sandboxes of ``alive`` containers (ports reserved again), sweep all others."""
        await self.start()
        dead = [c for c in self._sandboxes if c not in alive]
        closed = self.port_rules(self._sandboxes[c] for c in dead)
        for container_id in dead:
            self._forget_sandbox(container_id)
        for sandbox in list(self._sandboxes.values()):
            await attach.settle(self, sandbox)
        for container_id, sandbox in self._sandboxes.items():
            self._hold_again(container_id, sandbox)
        for pin in stray_pins(self._pins, alive):
            await self.run(netns.remove_pin, pin)
        try:
            await self._make_host(force=True)
            await self.run(lambda: self.kernel.forget_flows(closed, published=False))
            await self._repair()
        except (OSError, GantryError) as error:
            log.warning("bridge networks are not available yet", error=str(error))
        records = (self.dns_record(sandbox) for sandbox in self._sandboxes.values())
        await self.nameserver.restore(
            [r for r in records if r is not None], wanted=any(n.names for n in self.registry.connecting())
        )

        self._host_files.start()
        following.follow_host(self)
        if self.options.firewall and self._host_ready:
            self._watcher.start()

    async def _mend(self) -> None:
        # Our own transactions delete the table too, where they replace another version's.
        if self._host_ready and not await self.run(self.kernel.table_is_there):
            log.warning("the firewall table was deleted by somebody else, making it again")
            await self._make_host(force=True)

    def _forget_sandbox(self, container_id: str) -> None:
        sandbox = self._sandboxes.pop(container_id)
        planning.drop(self.registry, self.ports, list(sandbox.endpoints))
        self._store.delete(SANDBOX_KIND, container_id)

    def _hold_again(self, container_id: str, sandbox: Sandbox) -> None:
        for endpoint in sandbox.endpoints:
            for published in endpoint.ports:
                problem = self.ports.hold_again(endpoint.id, published, endpoint.address or endpoint.address6)
                if problem:
                    log.warning(
                        "a published port is also used by another program", container=container_id, cause=problem
                    )

    async def _repair(self) -> None:
        """Remove interfaces nobody has, make again what is missing of the living."""
        bridges = [n.bridge for n in self.registry.bridges()]
        veths = [e.veth for s in self._sandboxes.values() for e in s.endpoints if e.veth]
        strays = await self.run(self.kernel.stray_veths, bridges, veths)
        if strays:
            await self.reaper.delete(strays)
        there = await self.run(self.kernel.present, veths) if veths else set()
        for container_id, sandbox in self._sandboxes.items():
            if netns.is_pinned(self.pin_path(container_id)) and any(
                e.veth and e.veth not in there for e in sandbox.endpoints
            ):
                plans = [p for p in self._plans(sandbox) if p.veth not in there]
                await self.run(self._plug_all, plans, self.pin_path(container_id), None)

    async def _make_host(self, *, force: bool = False, new: Network | None = None) -> None:
        """Every network's interface on the host, and the firewall that goes with them.

        What is missing for one network does not keep others from working; only ``new`` raises.
        """
        if self._host_ready and not force:
            return
        plans = self.registry.host_plans()
        wanted = self.registry.host_plan(new) if new is not None else None
        rules, ports = self.registry.rules(), self.port_rules(self._sandboxes.values())

        def work() -> None:
            for plan in plans:
                try:
                    self.kernel.ensure(plan)
                except (OSError, GantryError) as error:
                    if plan == wanted:
                        raise
                    log.warning("a network is not available", interface=plan.name, error=str(error))
            self.kernel.apply_rules(rules, ports, force=force)

        await self.run(work)
        self._host_ready = True

    async def delete_links(self, names: Iterable[str]) -> None:
        """Delete interfaces on a thread of their own, where waiting holds nobody up."""
        await self.reaper.delete(names)

    async def restore_rules(self, *, without: str) -> None:
        """Make the firewall anew, leaving one network (by id) out."""
        rules, ports = self.registry.rules(without), self.port_rules(self._sandboxes.values())
        await self.run(lambda: self.kernel.apply_rules(rules, ports, force=True))

    async def _make_one(self, network: Network) -> None:
        """A new network's interface, and its rules beside those there are."""
        plan, rules = self.registry.host_plan(network), driver_of(network).rules(network)

        def work() -> None:
            if plan is not None:
                self.kernel.ensure(plan)
            if rules is not None:
                self.kernel.add_rules(rules)

        if not self._host_ready:
            await self._make_host(force=True, new=network)
            return
        try:
            await self.run(work)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            await self._make_host(force=True, new=network)  # somebody flushed the rule set

    @staticmethod
    def port_rules(sandboxes: Iterable[Sandbox]) -> list[PortRule]:
        """The firewall's elements for everything that these publish."""
        return [rule for s in sandboxes for e in s.endpoints for rule in e.port_rules()]

    async def remove_host_state(self) -> None:
        """Leave nothing in the kernel: pins, interfaces, bridges, the firewall table. Records of networks stay."""
        self._watcher.stop()
        self._host_files.stop()
        for container_id in list(self._sandboxes):
            await self.close_sandbox(container_id)
        for pin in stray_pins(self._pins, ()):
            await self.run(netns.remove_pin, pin)
        await self.reaper.drain()
        await self.retirement.drain()
        bridges = [n.bridge for n in self.registry.bridges()]
        await self.reaper.delete(await self.run(self.kernel.stray_veths, bridges, ()))
        for plan in self.registry.host_plans():
            await self.run(self.kernel.remove, plan)
        await self.run(self.kernel.remove_table)
        await self.nameserver.stop()
        self._host_ready = False

    async def close(self) -> None:
        """Let go of sockets and threads; everything in the kernel goes on."""
        await self.reaper.drain()
        self.retirement.stop()
        self._watcher.stop()
        self._host_files.stop()
        self.nameserver.close()
        await self.run(self.kernel.close)
        self.ports.close()
        self._worker.shutdown(wait=False)

    # Sandboxes: engine.interfaces.Networks

    def pin_path(self, container_id: str) -> str:
        """Where a container's namespace is pinned."""
        return f"{self._pins}/{container_id}"

    def sandbox(self, container_id: str) -> Sandbox | None:
        """What a connected container has."""
        return self._sandboxes.get(container_id)

    def sandboxes(self) -> list[Sandbox]:
        """What every connected container has."""
        return list(self._sandboxes.values())

    def keep(self, sandbox: Sandbox) -> None:
        """Record a changed sandbox, before the kernel follows."""
        container_id = sandbox.request.container_id
        self._store.put(SANDBOX_KIND, container_id, msgspec.json.encode(sandbox))
        self._sandboxes[container_id] = sandbox

    def note_attachment(self, container_id: str, network_id: str, config: dict[str, Any] | None) -> None:
        """Record that a network was connected (its settings) or disconnected (None) after create."""
        notes = self._attachments.setdefault(container_id, {})
        notes[network_id] = config
        self._store.put(ATTACHMENT_KIND, container_id, msgspec.json.encode(notes))

    def target(self, reference: str) -> NetworkTarget:
        """The container that connect or disconnect names; raises ``NotFound``."""
        if self.containers is None:
            raise Unavailable("the engine is still starting: containers are not known yet")
        return self.containers.network_target(reference)

    def wanted(self, request: SandboxRequest) -> list[planning.Wanted]:
        """The networks a container asks for, with endpoint settings."""
        return planning.wanted_networks(self.registry, request, self._attachments.get(request.container_id, {}))

    def validate(self, request: SandboxRequest) -> None:
        """Refuse what cannot work, before anything is stored."""
        planning.check(self.registry, request, self._attachments.get(request.container_id, {}))

    async def open_sandbox(self, request: SandboxRequest) -> str | None:
        """Path of the container's network namespace, pinned; None when it shares the host's."""
        target = planning.shared_with(request)
        if target:
            return self._shared_path(target)
        if request.mode == "host":
            return None
        pin = self.pin_path(request.container_id)
        if netns.is_pinned(pin):
            return pin
        try:
            netlink = await netns.on_own_thread_async(lambda: netns.create_pin(pin))
        except OSError as error:
            raise Internal(
                f"cannot make a network namespace for container {request.container_id}: {error.strerror}",
                hint="the engine needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)",
            ) from error
        self._drop_socket(request.container_id)
        self._fresh[request.container_id] = netlink
        return pin

    def _shared_path(self, target: str) -> str | None:
        sandbox = self._sandboxes.get(target)
        if sandbox is None:
            raise FailedPrecondition(f"cannot join network of a non running container: {target}")
        if sandbox.shared_with:
            return self._shared_path(sandbox.shared_with)
        return None if sandbox.request.mode == "host" else self.pin_path(target)

    async def connect(self, request: SandboxRequest) -> SandboxFiles:
        """Interfaces, addresses, routes, firewall and published ports. Undoes itself on failure."""
        container_id = request.container_id
        if container_id in self._sandboxes:
            sandbox, resolv = following.with_resolv(self, self._sandboxes[container_id])
            self.keep(sandbox)
            return self._files(sandbox, resolv)
        networks = self.wanted(request)
        for network, config in networks:
            # A restarted container wants its own address back while its last interface may still be on its way out.
            await self.reaper.hurry(network.id, planning.fixed_addresses(config))
        sandbox = planning.make_sandbox(self.registry, self.ports, request, networks)
        sandbox, resolv = following.with_resolv(self, sandbox)
        self.keep(sandbox)
        try:
            await both(self.tell_names(sandbox), self._attach(sandbox))
        except BaseException as error:
            await asyncio.shield(self._undo(container_id))
            if isinstance(error, OSError):
                raise Internal(f"failed to set up container networking: {error.strerror}") from error
            raise
        finally:
            self._drop_socket(container_id)
        for network, _ in networks:
            self.tell("connect", network, request)
        return self._files(sandbox, resolv)

    async def _undo(self, container_id: str) -> None:
        """Take back a failed ``connect``; the namespace stays for ``close_sandbox``."""
        sandbox = self._sandboxes.pop(container_id, None)
        if sandbox is not None:
            await self._release(sandbox)

    async def tell_names(self, sandbox: Sandbox) -> None:
        """Make the DNS server know a container as it is connected now, and linking ones its address."""
        record = self.dns_record(sandbox)
        if record is not None and record["asks"]:
            await self.nameserver.put(record)
        elif record is not None:
            self.nameserver.put_soon(record)
        else:
            await self.nameserver.drop(sandbox.request.container_id)
        if sandbox.on_default_bridge:
            hostfiles.update_links(self.options.data_root, sandbox, list(self._sandboxes.values()))

    def dns_record(self, sandbox: Sandbox) -> dict[str, Any] | None:
        """What the DNS server is to know of a container, if it uses it."""
        try:
            pin = self.pin_path(sandbox.request.container_id)
            return names.dns_record(sandbox, self.registry.find, pin, self.options)
        except NotFound:
            return None

    async def _attach(self, sandbox: Sandbox) -> None:
        plans = self._plans(sandbox)
        if not plans:
            return
        await self._make_host()
        pin = self.pin_path(sandbox.request.container_id)
        ports = self.port_rules((sandbox,))
        inside = self._fresh.get(sandbox.request.container_id)

        def work() -> None:
            self._plug_all(plans, pin, inside)
            self.kernel.publish(ports)

        try:
            await self.run(work)
        except NetlinkError as error:
            if error.errno != errno.ENOENT or not ports:
                raise
            # Somebody flushed the rule set: make the table again, with these ports in it.
            await self._make_host(force=True)
            await self.run(lambda: self.kernel.forget_flows(ports, published=True))

    def _plans(self, sandbox: Sandbox) -> list[PlugPlan]:
        gateways = planning.gateway_networks(self.wanted(sandbox.request))
        plans = (planning.plug_plan(self.registry, e, gateways, self.options) for e in sandbox.endpoints)
        return [plan for plan in plans if plan is not None]

    def _plug_all(self, plans: list[PlugPlan], pin: str, inside: Netlink | None) -> None:
        for plan in plans:
            self.kernel.plug(plan, pin, inside)

    def _drop_socket(self, container_id: str) -> None:
        netlink = self._fresh.pop(container_id, None)
        if netlink is not None:
            netlink.close()

    async def close_sandbox(self, container_id: str) -> None:
        """Remove everything ``open_sandbox`` and ``connect`` made.

        Addresses stay taken until their interfaces are gone, which the kernel does in its own time.
        """
        self._drop_socket(container_id)
        sandbox = self._sandboxes.pop(container_id, None)
        if sandbox is None:
            await self.run(netns.remove_pin, self.pin_path(container_id))
            return
        await self._release(sandbox, self.pin_path(container_id))
        for endpoint in sandbox.endpoints:
            with contextlib.suppress(GantryError):
                self.tell("disconnect", self.registry.find(endpoint.network_id), sandbox.request)

    async def _release(self, sandbox: Sandbox, pin: str = "") -> None:
        """Close ports, remove the pin, forget the record; interfaces and addresses are left to the reaper."""
        ports, container_id = self.port_rules((sandbox,)), sandbox.request.container_id
        inner = [e.device for e in sandbox.endpoints if e.addresses and not e.veth]
        path = self.pin_path(container_id)

        def work() -> None:
            if inner and netns.is_pinned(path):
                self.kernel.unplug_inside(path, inner)
            if pin:
                netns.remove_pin(pin)
            self.kernel.unpublish(ports)

        await self.nameserver.drop(container_id)
        try:
            await self.run(work)
        except OSError as error:
            log.warning("a network sandbox was not wholly removed", error=str(error), name=sandbox.request.name)
        for endpoint in sandbox.endpoints:
            self.ports.release(endpoint.id, endpoint.ports)
            if not endpoint.veth:
                self.registry.release(endpoint.network_id, endpoint.addresses)
        self._store.delete(SANDBOX_KIND, container_id)
        self.reaper.add(sandbox.endpoints)

    def tell(self, action: str, network: Network, request: SandboxRequest) -> None:
        """Publish a connect or disconnect event."""
        attributes = {"container": request.container_id, "name": network.name, "type": network.driver}
        self._bus.publish("network", action, network.id, attributes)

    def _files(self, sandbox: Sandbox, resolv: str) -> SandboxFiles:
        if sandbox.shared_with:
            other = self._sandboxes.get(sandbox.shared_with)
            return self._files(other, resolv) if other is not None else SandboxFiles("", "")
        return SandboxFiles(names.hosts_file(sandbox, self.sandboxes(), self._host_gateways()), resolv)

    def _host_gateways(self) -> Sequence[str]:
        default = self.registry.named("bridge")
        found = [str(gateway.ip) for gateway in default.gateways] if default is not None else []
        return self.options.host_gateway or found

    def link_environment(
        self, request: SandboxRequest, environments: Callable[[str], Sequence[str]]
    ) -> tuple[str, ...]:
        """The variables that ``--link`` adds."""
        if request.mode not in ("", "default", "bridge"):
            return ()
        others = list(self._sandboxes.values())
        for link in request.links:
            name, alias = names.split_link(link)
            if names.find_sandbox(name, others) is None:
                raise FailedPrecondition(f"Cannot link to a non running container: /{name} AS /{request.name}/{alias}")
        return names.link_environment(request, others, environments)

    def settings(self, request: SandboxRequest) -> dict[str, Any]:
        """``NetworkSettings`` of container inspect."""
        sandbox = self._sandboxes.get(request.container_id)
        key = self.pin_path("default" if request.mode == "host" else request.container_id)
        try:
            networks = self.wanted(request)
        except GantryError:
            networks = []
        return views.network_settings(request, sandbox, key, networks)

    def revision(self, container_id: str) -> tuple[object, ...]:
        """See ``engine.interfaces.Networks``."""
        changes = self._store.changes
        return self._sandboxes.get(container_id), changes(NETWORK_KIND), changes(ATTACHMENT_KIND)

    def port_list(self, container_id: str, exposed_ports: Iterable[str]) -> list[dict[str, Any]]:
        """``Ports`` of container list."""
        return views.port_summary(exposed_ports, self._sandboxes.get(container_id))

    # Networks: engine.api.networks

    def views(self, networks: Iterable[Network]) -> list[dict[str, Any]]:
        """Networks as list answers them."""
        return [views.network_view(n) for n in networks]

    def inspect(self, reference: str) -> dict[str, Any]:
        """One network with its members; raises ``NotFound``."""
        return views.network_view(self.registry.find(reference), self._sandboxes.values())

    def members(self, network: Network) -> list[tuple[Sandbox, Endpoint]]:
        """Connected containers of a network."""
        return [(s, e) for s in self._sandboxes.values() for e in s.endpoints if e.network_id == network.id]

    async def create(self, body: CreateRequest) -> Network:
        """Make a bridge network; raises as ``NetworkRegistry.plan``."""
        await self.start()
        # What the host has elsewhere only matters where a subnet is to be chosen.
        routed = await self._routed() if creation.chooses_subnet(body) else []
        async with self.planning:  # nobody else may find the name and the subnet free before they are recorded
            network = self.registry.plan(body, routed)
            if vlan_parent(network):
                there = await self.run(self.kernel.present, (network.bridge,))
                network = msgspec.structs.replace(network, own_parent=not there)
            self.registry.record(network)
        try:
            if network.connects:
                await self.retirement.gone(network.bridge)
                await self._make_one(network)
        except BaseException as error:
            async with self.planning:
                await asyncio.shield(retiring.take_down(self, network))
            if isinstance(error, OSError):
                raise Internal(f"cannot make network {network.name} ({network.bridge}): {error.strerror}") from error
            raise
        if network.names:
            self.nameserver.prepare()
        self._bus.publish("network", "create", network.id, {"name": network.name, "type": network.driver})
        return network

    async def remove(self, reference: str) -> Network:
        """Delete a network; raises ``NotFound``, ``PermissionDenied`` (predefined or in use)."""
        async with self.planning:
            network = self.registry.find(reference)
            if network.predefined:
                raise PermissionDenied(f"{network.name} is a pre-defined network and cannot be removed")
            if users := self.members(network):
                names = ", ".join(f'name:"{s.request.name}" id:"{e.id[:12]}"' for s, e in users)
                raise PermissionDenied(
                    f"error while removing network: network {network.name} has active endpoints ({names})",
                    hint="disconnect or stop these containers first",
                )
            await asyncio.shield(retiring.take_down(self, network))
        self._bus.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})
        return network

    async def rename(self, container_id: str, name: str) -> None:
        """A container has another name: a running one is found under it at once."""
        sandbox = self._sandboxes.get(container_id)
        if sandbox is not None:
            request = msgspec.structs.replace(sandbox.request, name=name)
            renamed = msgspec.structs.replace(sandbox, request=request)
            self.keep(renamed)
            await self.tell_names(renamed)

    def forget(self, container_id: str) -> None:
        """A container is removed for good: forget networks connected to it by API. Idempotent."""
        if self._attachments.pop(container_id, None) is not None:
            self._store.delete(ATTACHMENT_KIND, container_id)
