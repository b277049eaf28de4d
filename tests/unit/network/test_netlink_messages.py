"""Bytes on netlink sockets: framing, golden messages, decoding of refusals."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from engine.network import nft, rtnl
from engine.network.firewall import CHAINS, USER_CHAINS, BridgeRules, PortRule, ruleset
from engine.network.netlink import attribute, attributes, decode_error, frame, nested, text, u32


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=70))))
def test_attributes_round_trip(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in pairs)
    assert len(data) % 4 == 0
    assert list(attributes(data)) == pairs


@given(st.binary(max_size=200))
def test_decoding_hostile_bytes_ends(data: bytes) -> None:
    assert sum(len(payload) for _, payload in attributes(data)) <= len(data)


def test_frame_is_padded_and_counts_its_header() -> None:
    assert frame(16, 5, 7, b"abc") == struct.pack("=IHHII", 19, 16, 5, 7, 0) + b"abc\0"


def test_refusal_carries_the_kernels_words() -> None:
    original = bytes(16)
    body = struct.pack("=i", -errno.EEXIST) + original + text(1, "already there")
    refusal = decode_error(0x300, body, 3)
    assert refusal is not None
    assert (refusal.errno, refusal.index, refusal.detail) == (errno.EEXIST, 3, "already there")
    assert "File exists: already there" in str(refusal)
    assert decode_error(0, struct.pack("=i", 0) + original, 0) is None


def test_veth_message_makes_the_peer_inside_the_namespace() -> None:
    kind, flags, body = rtnl.new_veth("gveth1", 7, 1400, "eth0", b"\2\x42\1\2\3\4", 33)
    assert (kind, flags) == (16, 0x600)
    assert body[:16] == struct.pack("=BxHiII", 0, 0, 0, 1, 1), "the host's end comes up at once"
    outer = dict(attributes(body[16:]))
    assert outer[3] == b"gveth1\0"
    assert (outer[4], outer[10]) == (struct.pack("=I", 1400), struct.pack("=I", 7))
    info = dict(attributes(outer[18]))
    assert info[1] == b"veth\0"
    peer = dict(attributes(info[2]))[1]
    assert peer[:16] == bytes(16), "the peer waits for its address"
    inside = dict(attributes(peer[16:]))
    assert inside == {3: b"eth0\0", 1: b"\2\x42\1\2\3\4", 4: struct.pack("=I", 1400), 28: struct.pack("=I", 33)}


def test_address_and_route_messages() -> None:
    assert rtnl.new_address(5, IPv4Interface("172.17.0.2/16")) == (
        20,
        0x500,
        bytes.fromhex("021000000500000008000200ac11000208000100ac11000208000400ac11ffff"),
    )
    assert rtnl.default_route(IPv4Address("172.17.0.1"), 5) == (
        24,
        0x500,
        bytes.fromhex("02000000fe0300010000000008000500ac1100010800040005000000"),
    )


def test_port_rule_is_the_maps_element() -> None:
    port = PortRule(IPv4Address("127.0.0.1"), "udp", 5353, IPv4Address("172.17.0.2"), 53)
    assert port.key() == bytes.fromhex("7f0000011100000014e90000")
    assert port.data() == bytes.fromhex("ac11000200350000")


def test_elements_are_split_below_the_attribute_limit() -> None:
    messages = nft.elements(
        nft.NEW_ELEMENT, "t", "ports", ((struct.pack("=III", n, 6, n), bytes(8)) for n in range(1201))
    )
    assert len(messages) == 3
    assert all(len(body) < 0xFFFF for _, _, body in messages)


def test_port_rules_of_every_kind() -> None:
    six = PortRule(IPv6Address("::"), "tcp", 80, IPv6Address("fd00::2"), 8080)
    assert (six.place, six.key().hex(), six.data()) == (
        "ports6",
        "00" * 16 + "06000000" + "00500000",
        IPv6Address("fd00::2").packed + bytes.fromhex("1f900000"),
    )
    routed = PortRule(IPv4Address(0), "sctp", 0, IPv4Address("172.17.0.2"), 53)
    assert (routed.place, routed.key().hex(), routed.data()) == ("open", "ac1100028400000000350000", None)
    relayed = PortRule(IPv6Address("::"), "tcp", 8080, IPv4Address("172.17.0.2"), 80)
    assert (relayed.place, relayed.key().hex(), relayed.data()) == ("relayed", "060000001f900000", None)


def test_rule_set_replaces_all_but_the_users_chains_in_one_batch() -> None:
    first, second = IPv4Network("172.17.0.0/16"), IPv4Network("172.18.0.0/16")
    networks = [
        BridgeRules("gantry0", (first,), (first,)),
        BridgeRules("gbr-x", (), (second,), internal=True, icc=False),
    ]
    messages = ruleset("gantry", networks, [])
    kinds = [kind & 0xFF for kind, _, _ in messages]
    assert kinds[0] == nft.NEW_TABLE
    assert nft.DELETE_TABLE not in kinds
    assert kinds.count(nft.NEW_CHAIN) == len(CHAINS) + len(USER_CHAINS)
    flushed = [b for k, _, b in messages if k & 0xFF == nft.DELETE_RULE]
    assert len(flushed) == len(CHAINS)
    assert not any(name.encode() + b"\0" in body for body in flushed for name in USER_CHAINS)
    assert all(kind >> 8 == nft.SUBSYSTEM for kind, _, _ in messages)
    assert ruleset("gantry", networks, []) == messages, "a pure function"
    masquerading = [b for k, _, b in messages if k & 0xFF == nft.NEW_RULE and b"masq\0" in b]
    outgoing = [b for b in masquerading if bytes((172, 18, 0, 0)) in b]
    assert len(outgoing) == 1, "an internal network is only masqueraded for its own published ports"


def test_nested_marks_itself() -> None:
    assert nested(4, u32(1, 2)) == struct.pack("=HH", 12, 0x8004) + struct.pack("=HHI", 8, 1, 2)
