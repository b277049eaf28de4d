"""DNS messages: whatever comes in, the answer is one that another implementation reads the same way."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address, ip_address

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.network.dns import codec
from engine.network.dns.codec import DnsFormatError

LABEL = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) < 250)
ADDRESS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def question(name: str, kind: int = codec.A, *, size: int = 0, identifier: int = 7) -> bytes:
    record = dnslib.DNSRecord(dnslib.DNSHeader(id=identifier, rd=1), q=dnslib.DNSQuestion(name, kind))
    if size:
        record.add_ar(dnslib.EDNS0(udp_len=size))
    return bytes(record.pack())


@given(st.binary(max_size=600))
def test_any_bytes_are_a_query_or_refused(packet: bytes) -> None:
    try:
        query = codec.parse_query(packet)
    except DnsFormatError:
        told = codec.error_response(packet, codec.FORMERR)
        assert told == b"" or (told[:2] == packet[:2] and codec.code_of(told) == codec.FORMERR)
        return
    assert codec.response(query, codec.SERVFAIL)[:2] == packet[:2]


@given(NAME, st.sampled_from([codec.A, codec.AAAA, codec.PTR, 15, 33]), st.integers(0, 65535), st.booleans())
def test_another_implementations_questions_are_understood(name: str, kind: int, identifier: int, edns: bool) -> None:
    query = codec.parse_query(question(name, kind, size=1232 if edns else 0, identifier=identifier))
    assert (query.id, query.name, query.kind, query.network) == (identifier, name, kind, codec.IN)
    assert query.limit == (1232 if edns else 512)


@given(NAME, st.lists(ADDRESS, max_size=80), st.booleans())
def test_answers_are_read_by_another_implementation(
    name: str, addresses: list[IPv4Address | IPv6Address], edns: bool
) -> None:
    query = codec.parse_query(question(name, size=1400 if edns else 0))
    packet = codec.response(query, 0, [codec.address_answer(a) for a in addresses], limit=query.limit)
    assert len(packet) <= query.limit
    answer = dnslib.DNSRecord.parse(packet)
    assert (answer.header.id, answer.header.qr, answer.header.ra, answer.header.rd) == (7, 1, 1, 1)
    assert str(answer.q.qname) == f"{name}."
    got = [ip_address(str(record.rdata)) for record in answer.rr]
    assert got == addresses[: len(got)]
    assert bool(answer.header.tc) == (len(got) < len(addresses))
    assert all(str(record.rname) == f"{name}." and record.ttl == codec.TTL for record in answer.rr)
    assert len(answer.ar) == edns


@given(ADDRESS)
def test_reverse_names(address: IPv4Address | IPv6Address) -> None:
    assert codec.reverse_address(codec.reverse_name(address)) == address
    query = codec.parse_query(question(codec.reverse_name(address), codec.PTR))
    answer = dnslib.DNSRecord.parse(codec.response(query, 0, [codec.name_answer("web.blue")]))
    assert str(answer.rr[0].rdata) == "web.blue."


@pytest.mark.parametrize("name", ["", "web", "1.2.in-addr.arpa", "1.2.3.400.in-addr.arpa", "x." * 32 + "ip6.arpa"])
def test_names_that_are_no_addresses(name: str) -> None:
    assert codec.reverse_address(name) is None


def test_a_reply_belongs_to_its_question() -> None:
    asked = codec.parse_query(question("Web.Example"))
    reply = codec.response(asked, codec.NXDOMAIN)
    assert codec.answers(reply, 7, asked.question)
    assert codec.answers(reply.replace(b"Web", b"web"), 7, asked.question), "case does not count"
    assert not codec.answers(reply, 8, asked.question), "another id"
    assert not codec.answers(question("Web.Example"), 7, asked.question), "a question is no answer"
    other = codec.parse_query(question("evil.example"))
    assert not codec.answers(codec.response(other, 0), 7, asked.question), "another question"
    assert codec.answers(codec.error_response(question("Web.Example"), codec.FORMERR), 7, asked.question)


@given(st.text(max_size=80))
def test_names_are_encoded_or_refused(name: str) -> None:
    try:
        data = codec.encode_name(name)
    except DnsFormatError:
        return
    assert data[-1] == 0
    assert len(data) <= 255
