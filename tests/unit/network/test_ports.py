"""Port bindings as text, and the table of held ports."""

from __future__ import annotations

import socket

import pytest

from engine.interfaces import PortBinding, SandboxRequest
from engine.network import ports
from engine.network.model import Published
from engine.network.ports import PortRequest, PortTable, host_ips, parse_port, requests_of
from oci.errors import Internal, InvalidArgument


def request(bindings: dict[str, tuple[PortBinding, ...]], **more: object) -> SandboxRequest:
    return SandboxRequest(container_id="c", name="c", hostname="h", mode="bridge", port_bindings=bindings, **more)  # type: ignore[arg-type]  # fields by name


def on_ipv4(*wanted: PortRequest) -> list[tuple[PortRequest, tuple[str, ...]]]:
    return [(one, host_ips(one, "0.0.0.0", (4,))) for one in wanted]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80/tcp", (80, "tcp")), ("53/UDP", (53, "udp")), ("80", (80, "tcp")), ("9/sctp", (9, "sctp"))],
)
def test_parse_port(text: str, expected: tuple[int, str]) -> None:
    assert parse_port(text) == expected


@pytest.mark.parametrize("text", ["", "0/tcp", "65536/tcp", "x/tcp", "80/icmp", "-1", "８０/tcp", "80-90/tcp"])
def test_parse_port_refuses(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid port specification"):
        parse_port(text)


def test_bindings_of_every_form() -> None:
    wanted = requests_of(
        request(
            {
                "80/tcp": (PortBinding("127.0.0.1", "8080"), PortBinding("", "8000-8010")),
                "53/udp": (PortBinding(),),
                "54/udp": (),
            },
            exposed_ports=("80/tcp", "443/tcp"),
            publish_all=True,
        )
    )
    assert wanted == [
        PortRequest(80, "tcp", "127.0.0.1", 8080, 8080),
        PortRequest(80, "tcp", "", 8000, 8010),
        PortRequest(53, "udp", "", 0, 0),
        PortRequest(54, "udp", "", 0, 0),
        PortRequest(443, "tcp", "", 0, 0),
    ]


@pytest.mark.parametrize(("ip", "port"), [("", "x"), ("", "90-80"), ("", "65536"), ("no", "80"), ("1.2.3", "80")])
def test_bindings_refused(ip: str, port: str) -> None:
    with pytest.raises(InvalidArgument):
        requests_of(request({"80/tcp": (PortBinding(ip, port),)}))


def test_wildcard_and_address_conflict_within_the_engine() -> None:
    table, number = PortTable(), free_port()
    table.reserve("a", on_ipv4(PortRequest(80, "tcp", "127.0.0.1", number, number)), "172.17.0.2")
    table.reserve("b", on_ipv4(PortRequest(80, "udp", "0.0.0.0", number, number)), "172.17.0.3")
    with pytest.raises(Internal, match=rf"^Bind for 0.0.0.0:{number} failed: port is already allocated$"):
        table.reserve("c", on_ipv4(PortRequest(80, "tcp", "0.0.0.0", number, number)), "172.17.0.4")
    table.close()


def test_a_range_takes_the_first_free_and_all_or_none() -> None:
    table, number = PortTable(), free_port()
    with socket.create_server(("127.0.0.1", number)):
        got = table.reserve("a", on_ipv4(PortRequest(80, "tcp", "127.0.0.1", number, number + 20)), "172.17.0.2")
        assert number < got[0].host_port <= number + 20
        pair = on_ipv4(
            PortRequest(81, "tcp", "127.0.0.1", 0, 0),
            PortRequest(82, "tcp", "127.0.0.1", number, number),
        )
        cause = f"failed to bind host port for 127.0.0.1:{number}:172.17.0.3:82/tcp: address already in use"
        with pytest.raises(Internal) as caught:
            table.reserve("b", pair, "172.17.0.3")
        assert caught.value.message == cause
    assert table.reserve("b", pair, "172.17.0.3")[1] == Published("127.0.0.1", number, 82, "tcp")
    table.close()


def test_any_port_comes_from_the_ephemeral_range(monkeypatch: pytest.MonkeyPatch) -> None:
    low = free_port()
    monkeypatch.setattr(ports, "ephemeral_range", lambda: (low, low + 1))
    table = PortTable()
    wanted = on_ipv4(PortRequest(80, "tcp", "127.0.0.1", 0, 0))
    with pytest.raises(Internal, match=r"all ports are allocated"):
        for owner in ("a", "b", "c"):
            assert low <= table.reserve(owner, wanted, "172.17.0.2")[0].host_port <= low + 1
    table.close()


def test_release_makes_room_and_is_idempotent() -> None:
    table, number = PortTable(), free_port()
    wanted = on_ipv4(PortRequest(80, "tcp", "127.0.0.1", number, number))
    held = table.reserve("a", wanted, "172.17.0.2")
    table.release("a", held)
    table.release("a", held)
    table.reserve("b", wanted, "172.17.0.3")
    table.release("a", held)
    with pytest.raises(Internal, match="already allocated"):
        table.reserve("c", wanted, "172.17.0.3")
    table.close()


def test_held_again_after_a_restart_says_who_is_in_the_way() -> None:
    number = free_port()
    published = Published("127.0.0.1", number, 80, "tcp")
    table = PortTable()
    with socket.create_server(("127.0.0.1", number)):
        assert "address already in use" in table.hold_again("a", published, "172.17.0.2")
    with pytest.raises(Internal, match="already allocated"):
        table.reserve("b", on_ipv4(PortRequest(80, "tcp", "127.0.0.1", number, number)), "172.17.0.3")
    table.close()
