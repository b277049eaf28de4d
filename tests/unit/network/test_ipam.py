"""Addresses and subnets: the allocator against a model, choosing and checking of pools."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.network.ipam import AddressPool, choose_subnet, complete_pool, parse_bip, parse_pools, unique_local
from engine.network.model import DEFAULT_POOLS, Address, IpamConfig, Subnet
from oci.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted

SUBNET = IPv4Network("10.0.0.0/28")
RESERVED = {IPv4Address("10.0.0.0"), IPv4Address("10.0.0.15"), IPv4Address("10.0.0.1"), IPv4Address("10.0.0.5")}
USABLE = set(SUBNET) - RESERVED


class PoolModel(RuleBasedStateMachine):
    """Whatever is asked in whatever order: no address has two owners, and the lowest free one is next."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = AddressPool(IpamConfig("10.0.0.0/28", "", "10.0.0.1", {"printer": "10.0.0.5"}))
        self.owned: set[Address] = set()

    @rule()
    def allocate(self) -> None:
        free = USABLE - self.owned
        if not free:
            with pytest.raises(ResourceExhausted):
                self.pool.allocate()
            return
        got = self.pool.allocate()
        assert got == min(free)
        self.owned.add(got)

    @rule(number=st.integers(0, 15))
    def ask_for(self, number: int) -> None:
        wanted = SUBNET[number]
        if wanted in self.owned or wanted in RESERVED:
            with pytest.raises(FailedPrecondition, match="Address already in use"):
                self.pool.allocate(wanted)
            return
        assert self.pool.allocate(wanted) == wanted
        self.owned.add(wanted)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.owned)))
        self.pool.release(address)
        self.owned.discard(address)

    @rule(number=st.integers(0, 15))
    def release_what_nobody_has(self, number: int) -> None:
        if SUBNET[number] not in self.owned:
            self.pool.release(SUBNET[number])

    @rule(number=st.integers(0, 15))
    def take_stored(self, number: int) -> None:
        address = SUBNET[number]
        if address in self.owned:
            with pytest.raises(Aborted):
                self.pool.take(address)
        elif address not in RESERVED:
            self.pool.take(address)
            self.owned.add(address)

    @invariant()
    def knows_its_owners(self) -> None:
        assert self.pool.taken == self.owned


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_an_ip_range_bounds_what_is_handed_out() -> None:
    pool = AddressPool(IpamConfig("10.0.0.0/24", "10.0.0.64/30", "10.0.0.64"))
    assert [str(pool.allocate()) for _ in range(3)] == ["10.0.0.65", "10.0.0.66", "10.0.0.67"]
    with pytest.raises(ResourceExhausted):
        pool.allocate()
    assert str(pool.allocate(IPv4Address("10.0.0.9"))) == "10.0.0.9", "a fixed address may be outside the range"
    pool.release(IPv4Address("10.0.0.9"))
    pool.release(IPv4Address("10.0.0.66"))
    assert str(pool.allocate()) == "10.0.0.66"


def test_address_of_another_subnet_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no configured subnet contains IP address"):
        AddressPool(IpamConfig("10.0.0.0/24", "", "10.0.0.1")).allocate(IPv4Address("10.0.1.1"))


def test_default_pools_are_dockers() -> None:
    used: list[Subnet] = []
    for _ in range(17):
        used.append(choose_subnet(DEFAULT_POOLS, used))
    assert [str(n) for n in (used[0], used[1], used[14], used[15], used[16])] == [
        "172.17.0.0/16",
        "172.18.0.0/16",
        "172.31.0.0/16",
        "192.168.0.0/20",
        "192.168.16.0/20",
    ]


def test_choosing_avoids_overlaps_in_both_directions() -> None:
    small, large = IPv4Network("172.17.5.0/24"), IPv4Network("172.16.0.0/12")
    assert str(choose_subnet(DEFAULT_POOLS, [small])) == "172.18.0.0/16"
    assert str(choose_subnet(DEFAULT_POOLS, [large])) == "192.168.0.0/20"
    with pytest.raises(ResourceExhausted, match="fully subnetted"):
        choose_subnet(DEFAULT_POOLS, [large, IPv4Network("192.168.0.0/16")])


def test_complete_pool_fills_in() -> None:
    def complete(given: IpamConfig) -> IpamConfig:
        return complete_pool(given, DEFAULT_POOLS, [IPv4Network("10.1.0.0/16")], [IPv4Network("172.17.0.0/16")])

    assert complete(IpamConfig()) == IpamConfig("172.18.0.0/16", "", "172.18.0.1")
    assert complete(IpamConfig("172.17.0.0/24")).gateway == "172.17.0.1", "what is asked for may cover a route"
    assert complete(IpamConfig("10.2.0.0/24", "10.2.0.128/25")).gateway == "10.2.0.128"
    assert complete(IpamConfig("10.2.0.0/24", "", "", {"x": "10.2.0.1"})).gateway == "10.2.0.2"
    with pytest.raises(PermissionDenied, match="Pool overlaps with other one on this address space"):
        complete(IpamConfig("10.1.2.0/24"))
    for wrong in (
        IpamConfig("10.2.0.5/24"),
        IpamConfig("10.2.0.0/31"),
        IpamConfig("nonsense"),
        IpamConfig("fd00::/127"),
        IpamConfig("fd00::/64", gateway="10.2.0.1"),
        IpamConfig(gateway="10.2.0.1"),
        IpamConfig("10.2.0.0/24", gateway="10.3.0.1"),
        IpamConfig("10.2.0.0/24", ip_range="10.3.0.0/25"),
        IpamConfig("10.2.0.0/24", auxiliary={"x": "10.3.0.1"}),
    ):
        with pytest.raises(InvalidArgument):
            complete(wrong)


def test_ipv6_pools() -> None:
    base, size = unique_local(bytes.fromhex("0102030405"))
    assert (base, size) == ("fd01:203:405::/48", 64)
    first = complete_pool(IpamConfig(), [(base, size)], [IPv4Network("10.0.0.0/8")], [])
    assert first == IpamConfig("fd01:203:405::/64", "", "fd01:203:405::1")
    assert str(choose_subnet([(base, size)], [first.network])) == "fd01:203:405:1::/64"
    pool = AddressPool(first)
    assert str(pool.allocate()) == "fd01:203:405::2", "the gateway and the subnet's own address are reserved"
    assert str(pool.allocate()) == "fd01:203:405::3"
    last = pool.subnet[-1]
    assert pool.allocate(last) == last, "IPv6 has no broadcast address"
    assert choose_subnet([("fd00::/8", 64)], [IPv6Network("fd00::/9")]) == IPv6Network("fd80::/64"), "found at once"


def test_flags() -> None:
    assert str(parse_bip("10.5.0.1/24")) == "10.5.0.1/24"
    assert parse_pools(["base=10.0.0.0/8,size=24"]) == (("10.0.0.0/8", 24),)
    for bip in ("10.5.0.0/24", "x", "10.5.0.1/32"):
        with pytest.raises(InvalidArgument):
            parse_bip(bip)
    for pool in ("base=10.0.0.0/8", "size=24", "base=10.0.0.0/16,size=8", "base=x,size=24", "base=10.0.0.0/8,size=30"):
        with pytest.raises(InvalidArgument):
            parse_pools([pool])
