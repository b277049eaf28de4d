"""The /networks endpoints and the sandbox's bookkeeping over a kernel that only remembers what it was asked."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Network
from typing import Any

import pytest

from engine.api.networks import routes
from engine.config import load
from engine.events import EventBus
from engine.http.errors import body_of, status_of
from engine.http.messages import Request, Response
from engine.http.router import Router
from engine.interfaces import NetworkTarget, PortBinding, SandboxRequest
from engine.network import netns
from engine.network.kernel import HostKernel
from engine.network.model import NetworkOptions, Subnet
from engine.network.nameserver import NameServer
from engine.network.netlink import NetlinkError
from engine.network.options import options_of
from engine.network.service import NetworkService
from engine.store import Store
from oci.errors import InvalidArgument, NotFound


class FakeKernel(HostKernel):
    """Says what it was told to do; ``fail`` names a method that the kernel refuses."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__(options)
        self.calls: list[str] = []
        self.fail = ""

    def _note(self, name: str, detail: object = "") -> None:
        self.calls.append(f"{name} {detail}".strip())
        if self.fail == name:
            raise NetlinkError(errno.EPERM, 0, "")

    def foreign_networks(self, own: Any) -> list[Subnet]:
        return [IPv4Network("172.18.0.0/16")]

    def ensure(self, plan: Any, *, force: bool = False) -> Any:
        self._note("bridge", plan.name)

    def remove(self, plan: Any) -> None:
        self._note("remove", plan.name)

    def retire(self, plan: Any) -> bool:
        self._note("retire", plan.name)
        return True

    def has_bridge(self, name: str, mac: bytes) -> bool:
        return True

    def withdraw_rules(self, rules: Any) -> None:
        self._note("rules", "one less")

    def apply_rules(self, rules: Any, ports: Any, *, force: bool = False) -> None:
        self._note("rules", len(rules))

    def add_rules(self, rules: Any) -> None:
        self._note("rules", "one more")

    def plug(self, plan: Any, pin: str, inside: Any) -> None:
        self._note("plug", f"{plan.device} {' '.join(map(str, plan.addresses))}")

    def publish(self, ports: Any) -> None:
        if ports:
            self._note("publish", len(ports))

    def unpublish(self, ports: Any) -> None:
        if ports:
            self._note("unpublish", len(ports))

    def present(self, names: Any) -> set[str]:
        return set()

    def set_default_route(self, pin: str, device: str, gateway: Any) -> None:
        self._note("route", f"{device} {gateway}")


class FakeNameServer(NameServer):
    """Remembers the records it was given."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.records: dict[str, dict[str, Any]] = {}

    async def restore(self, records: Any, *, wanted: bool) -> None:
        self.records = {record["id"]: record for record in records}

    def prepare(self) -> None: ...

    async def put(self, record: dict[str, Any]) -> None:
        self.records[record["id"]] = record

    def put_soon(self, record: dict[str, Any]) -> None:
        self.records[record["id"]] = record

    async def drop(self, container_id: str) -> None:
        self.records.pop(container_id, None)


class Engine:
    """A service and a way to call its endpoints; restarts keep the store."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.store = Store(":memory:")
        self.bus = EventBus()
        self.service = self.new_service()

    def new_service(self) -> NetworkService:
        service = NetworkService(self.store, self.bus, self.root)
        self.kernel = service.kernel = service.reaper._kernel = FakeKernel(service.options)
        self.names = service.nameserver = FakeNameServer()
        service.reaper.delete = _deleted  # type: ignore[method-assign]  # no kernel here
        return service

    async def call(self, method: str, path: str, body: object = None, **query: object) -> tuple[int, Any]:
        """(status, decoded body) of one request."""

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(body).encode()

        texts = {k: [v if isinstance(v, str) else json.dumps(v)] for k, v in query.items()}
        try:
            route, params = Router(routes(self.service)).find(method, path)
            answer = await route.handler(Request(method, path, texts, {}, (1, 51), chunks(), params))
        except Exception as error:
            return status_of(error), json.loads(body_of(error))["message"]
        assert isinstance(answer, Response)
        assert isinstance(answer.body, bytes)
        return answer.status, json.loads(answer.body) if answer.body else None


async def _deleted(names: Any) -> None:
    return None


Scenario = Callable[[Engine], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    async def create(work: Any) -> Any:
        class Socket:
            def close(self) -> None: ...

        return Socket()

    monkeypatch.setattr(netns, "on_own_thread_async", create)
    monkeypatch.setattr(netns, "remove_pin", lambda path: None)

    def run(scenario: Scenario) -> None:
        async def body() -> None:
            engine = Engine(str(tmp_path))
            await engine.service.restore(frozenset())
            await scenario(engine)
            await engine.service.reaper.drain()

        asyncio.run(body())

    return run


def container(number: int, mode: str = "bridge", **more: Any) -> SandboxRequest:
    return SandboxRequest(container_id=f"{number:064x}", name=f"c{number}", hostname=f"h{number}", mode=mode, **more)


def test_predefined_networks(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        status, found = await engine.call("GET", "/networks")
        assert status == 200
        assert {n["Name"]: n["Driver"] for n in found} == {"bridge": "bridge", "host": "host", "none": "null"}
        status, bridge = await engine.call("GET", "/networks/bridge")
        assert bridge["IPAM"]["Config"] == [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
        assert bridge["Options"]["com.docker.network.bridge.name"] == "gantry0"
        ids = [n["Id"] for n in found]
        engine.service = engine.new_service()
        await engine.service.start()
        assert [n["Id"] for n in (await engine.call("GET", "/networks"))[1]] == sorted(ids), "ids outlive the daemon"
        assert await engine.call("DELETE", "/networks/host") == (
            403,
            "host is a pre-defined network and cannot be removed",
        )

    play(scenario)


def test_create_inspect_remove(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        body = {"Name": "blue", "Driver": "bridge", "Labels": {"a": "b"}, "CheckDuplicate": True, "EnableIPv6": False}
        status, made = await engine.call("POST", "/networks/create", body)
        assert (status, made["Warning"]) == (201, "")
        for reference in ("blue", made["Id"], made["Id"][:12]):
            status, view = await engine.call("GET", f"/networks/{reference}")
            assert (status, view["Id"]) == (200, made["Id"])
        assert view["IPAM"]["Config"] == [{"Subnet": "172.19.0.0/16", "Gateway": "172.19.0.1"}], "172.18 is routed"
        assert (view["Labels"], view["Containers"], view["Scope"]) == ({"a": "b"}, {}, "local")
        assert await engine.call("POST", "/networks/create", body) == (409, "network with name blue already exists")
        assert await engine.call("DELETE", "/networks/blue") == (204, None)
        assert await engine.call("GET", "/networks/blue") == (404, "network blue not found")
        actions = [e.action for e in engine.bus.history(0, 1 << 63) if e.type == "network"]
        assert actions == ["create", "destroy"]

    play(scenario)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"Name": "host"}, 403, "operation is not permitted on predefined host network"),
        ({"Name": " "}, 400, "invalid network name"),
        ({"Name": "x", "Driver": "host"}, 403, "only one instance"),
        ({"Name": "x", "Driver": "overlay"}, 501, "swarm"),
        ({"Name": "x", "Driver": "nope"}, 404, 'plugin "nope" not found'),
        ({"Name": "x", "EnableIPv4": False}, 400, "IPv4 or IPv6 must be enabled"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "172.17.5.0/24"}]}}, 403, "Pool overlaps"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "10.0.0.1/24"}]}}, 400, "host bits"),
        ({"Name": "x", "EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "fd00::/127"}]}}, 400, "no room"),
        ({"Name": "x", "IPAM": {"Driver": "dhcp"}}, 404, "dhcp"),
        ({"Name": "x", "Options": {"com.docker.network.bridge.name": "../../x"}}, 400, "invalid bridge name"),
        ({"Name": "x", "Options": {"com.docker.network.bridge.name": "sixteen-letters!"}}, 400, "invalid bridge name"),
    ],
)
def test_create_refuses(play: Callable[[Scenario], None], body: dict[str, Any], status: int, words: str) -> None:
    async def scenario(engine: Engine) -> None:
        got, message = await engine.call("POST", "/networks/create", body)
        assert (got, words in message) == (status, True), message
        assert len(engine.service.registry.all()) == 3

    play(scenario)


def test_a_refused_bridge_leaves_no_network(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        engine.kernel.fail = "rules"
        with pytest.raises(NetlinkError):
            await engine.service.run(engine.kernel.apply_rules, [], [])
        status, message = await engine.call("POST", "/networks/create", {"Name": "blue"})
        assert (status, "Operation not permitted" in message) == (500, True)
        assert engine.service.registry.named("blue") is None
        assert len(list(engine.store.all("network"))) == 3

    play(scenario)


def test_filters_and_prune(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        for name, label in (("blue", "x=1"), ("blues", "x=2"), ("red", "y")):
            key, _, value = label.partition("=")
            await engine.call("POST", "/networks/create", {"Name": name, "Labels": {key: value}})
        await engine.service.connect(container(1, "red"))

        async def names(**filters: list[str]) -> set[str]:
            status, found = await engine.call("GET", "/networks", filters=filters)
            assert status == 200
            return {n["Name"] for n in found}

        assert await names(name=["blue"]) == {"blue", "blues"}
        assert await names(label=["x=1"]) == {"blue"}
        assert await names(label=["x"], name=["s"]) == {"blues"}
        assert await names(driver=["null", "host"]) == {"none", "host"}
        assert await names(type=["custom"]) == {"blue", "blues", "red"}
        assert await names(dangling=["true"]) == {"blue", "blues"}
        assert await names(scope=["swarm"]) == set()
        assert (await engine.call("GET", "/networks", filters={"nope": ["x"]})) == (400, "invalid filter 'nope'")
        status, message = await engine.call("DELETE", "/networks/red")
        assert (status, "has active endpoints" in message) == (403, True)
        assert await engine.call("POST", "/networks/prune", filters={"until": ["1h"]}) == (
            200,
            {"NetworksDeleted": None},
        )
        assert await engine.call("POST", "/networks/prune", filters={"label!": ["x=2"]}) == (
            200,
            {"NetworksDeleted": ["blue"]},
        )
        assert await engine.call("POST", "/networks/prune") == (200, {"NetworksDeleted": ["blues"]})

    play(scenario)


def test_settings_running_and_stopped(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        request = container(
            1, exposed_ports=("80/tcp", "443/tcp"), port_bindings={"80/tcp": (PortBinding("127.0.0.1", "0"),)}
        )
        stopped = engine.service.settings(request)
        assert (stopped["Ports"], stopped["SandboxID"], stopped["IPAddress"]) == ({}, "", "")
        assert stopped["Networks"]["bridge"]["IPAddress"] == ""
        await engine.service.open_sandbox(request)
        await engine.service.connect(request)
        running = engine.service.settings(request)
        assert (running["IPAddress"], running["IPPrefixLen"], running["Gateway"]) == ("172.17.0.2", 16, "172.17.0.1")
        assert running["MacAddress"] == "02:42:ac:11:00:02"
        assert running["Networks"]["bridge"]["EndpointID"] == running["EndpointID"]
        assert running["Ports"]["443/tcp"] is None
        (binding,) = running["Ports"]["80/tcp"]
        assert binding["HostIp"] == "127.0.0.1"
        listed = engine.service.port_list(request.container_id, request.exposed_ports)
        public = {"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": int(binding["HostPort"]), "Type": "tcp"}
        assert listed == [public, {"PrivatePort": 443, "Type": "tcp"}]
        members = (await engine.call("GET", "/networks/bridge"))[1]["Containers"]
        assert members[request.container_id]["IPv4Address"] == "172.17.0.2/16"
        await engine.service.close_sandbox(request.container_id)
        assert engine.service.settings(request) == stopped
        assert engine.kernel.calls[-3:] == ["plug eth0 172.17.0.2/16", "publish 1", "unpublish 1"]

    play(scenario)


@pytest.mark.parametrize("step", ["plug", "publish"])
def test_a_failed_connect_gives_everything_back(play: Callable[[Scenario], None], step: str) -> None:
    async def scenario(engine: Engine) -> None:
        request = container(1, port_bindings={"80/tcp": (PortBinding("127.0.0.1", "0"),)})
        engine.kernel.fail = step
        with pytest.raises(Exception, match="failed to set up container networking: Operation not permitted"):
            await engine.service.connect(request)
        await engine.service.reaper.drain()
        assert list(engine.store.all("endpoint")) == []
        engine.kernel.fail = ""
        await engine.service.connect(container(2))
        assert engine.service.settings(container(2))["IPAddress"] == "172.17.0.2"

    play(scenario)


def test_validation_before_anything_is_stored(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(NotFound, match=r"^network nope not found$"):
            engine.service.validate(container(1, "nope"))
        fixed = {"bridge": {"IPAMConfig": {"IPv4Address": "172.17.0.9"}}}
        with pytest.raises(InvalidArgument, match="supported on user defined networks only"):
            engine.service.validate(container(1, endpoints=fixed))
        with pytest.raises(InvalidArgument, match="invalid MAC address"):
            engine.service.validate(container(1, mac_address="02:42"))
        ports = {"80/tcp": (PortBinding("", "80"),)}
        with pytest.raises(InvalidArgument, match="port publishing and the container type network mode"):
            engine.service.validate(container(1, f"container:{2:064x}", port_bindings=ports))
        engine.service.validate(container(1, "host", port_bindings=ports))

    play(scenario)


def test_several_networks_and_their_order(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        for name in ("blue", "apple"):
            await engine.call("POST", "/networks/create", {"Name": name})
        request = container(1, "blue", endpoints={"apple": {"Aliases": ["a"]}, "blue": {}})
        await engine.service.connect(request)
        assert engine.kernel.calls[-2:] == ["plug eth0 172.19.0.2/16", "plug eth1 172.20.0.2/16"]
        views = engine.service.settings(request)["Networks"]
        assert views["apple"]["DNSNames"] == ["c1", "a", "000000000000", "h1"]

    play(scenario)


def test_connect_by_api_is_kept_for_the_next_start(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.call("POST", "/networks/create", {"Name": "blue"})
        status, _ = await engine.call("POST", "/networks/blue/connect", {"Container": "c1"})
        assert status == 503, "containers are not wired yet"

        class Directory:
            def network_target(self, reference: str) -> NetworkTarget:
                if reference != "c1":
                    raise NotFound(f"No such container: {reference}")
                return NetworkTarget(container(1), running=False)

        engine.service.containers = Directory()
        assert (await engine.call("POST", "/networks/blue/connect", {"Container": "x"}))[0] == 404
        assert (await engine.call("POST", "/networks/host/connect", {"Container": "c1"}))[0] == 403
        body = {"Container": "c1", "EndpointConfig": {"Aliases": ["db"], "IPAMConfig": None}}
        assert (await engine.call("POST", "/networks/blue/connect", body))[0] == 200
        engine.service = engine.new_service()
        await engine.service.restore(frozenset())
        assert engine.service.settings(container(1))["Networks"]["blue"]["Aliases"] == ["db"]
        engine.service.forget(container(1).container_id)
        assert list(engine.service.settings(container(1))["Networks"]) == ["bridge"]
        assert list(engine.store.all("attachment")) == []

    play(scenario)


def test_flags_of_the_daemon_reach_the_network(tmp_path: Any) -> None:
    file = tmp_path / "daemon.json"
    file.write_text('{"ipv6": true, "dns-opts": ["ndots:2"], "host-gateway-ip": "192.0.2.9", "icc": false}')
    roots = ["--data-root", str(tmp_path), "--exec-root", str(tmp_path), "--config-file", str(file)]
    options = options_of(load([*roots, "--ip", "127.0.0.1", "--iptables=false", "--fixed-cidr-v6", "fd12::/64"]))
    assert (options.ipv6, options.icc, options.firewall, options.masquerade) == (True, False, False, True)
    assert (options.host_binding, options.dns_options, options.host_gateway) == (
        "127.0.0.1",
        ("ndots:2",),
        ("192.0.2.9",),
    )
    assert (options.fixed_cidr_v6, options.data_root) == ("fd12::/64", str(tmp_path))
    with pytest.raises(InvalidArgument, match="is not an IP address"):
        options_of(load([*roots, "--ip", "here"]))


def test_daemon_flags() -> None:
    class Flags:
        bridge, bip, mtu, dns = "", "10.5.0.1/24", 1400, ("9.9.9.9",)
        address_pools = ("base=10.0.0.0/8,size=24",)

    options = options_of(Flags())
    assert (options.bridge, options.bip, options.mtu) == ("gantry0", "10.5.0.1/24", 1400)
    assert (options.pools, options.dns) == ((("10.0.0.0/8", 24),), ("9.9.9.9",))


def test_networks_made_at_once_share_neither_name_nor_subnet(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        lan = {"Driver": "macvlan", "Options": {"parent": "eth0.10"}}
        same = await asyncio.gather(*(engine.call("POST", "/networks/create", {"Name": "x", **lan}) for _ in range(4)))
        assert sorted(status for status, _ in same) == [201, 409, 409, 409]
        bodies = [{"Name": f"n{number}"} for number in range(8)]
        made = await asyncio.gather(*(engine.call("POST", "/networks/create", body) for body in bodies))
        assert {status for status, _ in made} == {201}
        subnets = engine.service.registry.subnets()
        assert len(set(subnets)) == len(subnets) == 10

    play(scenario)


def test_nobody_gets_onto_a_network_that_is_being_removed(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        for round_ in range(2):
            await engine.call("POST", "/networks/create", {"Name": "red"})
            steps = [engine.service.remove("red"), engine.service.connect(container(1, "red"))]
            results = await asyncio.gather(*(steps if round_ else reversed(steps)), return_exceptions=True)
            assert len([r for r in results if isinstance(r, Exception)]) == 1, results
            sandbox = engine.service.sandbox(container(1).container_id)
            assert (sandbox is not None) == (engine.service.registry.named("red") is not None)
            if sandbox is not None:
                await engine.service.close_sandbox(container(1).container_id)
                await engine.service.remove("red")

    play(scenario)


def test_a_network_left_behind_may_be_removed(play: Callable[[Scenario], None]) -> None:
    async def scenario(engine: Engine) -> None:
        for name in ("blue", "red"):
            await engine.call("POST", "/networks/create", {"Name": name})
        request, find = container(1, "blue"), engine.service.registry.find
        engine.service.note_attachment(request.container_id, find("blue").id, None)
        engine.service.note_attachment(request.container_id, find("red").id, {})
        await engine.service.remove("blue")
        await engine.service.connect(request)
        assert list(engine.service.settings(request)["Networks"]) == ["red"]
        with pytest.raises(NotFound, match="network blue not found"):
            engine.service.validate(container(2, "blue"))

    play(scenario)
