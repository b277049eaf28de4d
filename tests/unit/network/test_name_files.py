"""Contents of /etc/hosts and /etc/resolv.conf by Docker's rules."""

from __future__ import annotations

import pytest

from engine.interfaces import SandboxRequest
from engine.network import files
from engine.network.model import Endpoint, Sandbox
from engine.network.names import container_files

HOST = """# comment
nameserver 127.0.0.53
nameserver 10.0.0.53 # office
search a.example b.example
options edns0 ndots:2
"""


def test_loopback_servers_of_the_host_are_left_out() -> None:
    assert files.resolv_conf(HOST) == "nameserver 10.0.0.53\nsearch a.example b.example\noptions edns0 ndots:2\n"


def test_public_servers_when_the_host_has_only_its_own() -> None:
    assert files.resolv_conf("nameserver ::1\n") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_a_container_in_the_hosts_namespace_keeps_them() -> None:
    assert files.resolv_conf(HOST, own_loopback=True).startswith("nameserver 127.0.0.53\nnameserver 10.0.0.53\n")


def test_what_is_asked_for_wins() -> None:
    text = files.resolv_conf(HOST, servers=["127.0.0.1"], search=["."], options=["rotate"])
    assert text == "nameserver 127.0.0.1\noptions rotate\n"


def test_extra_hosts_in_every_form() -> None:
    given = ["db:10.0.0.5", "v6=[::1]", "six:fd00::5", "gw:host-gateway"]
    assert files.extra_entries(given, "172.17.0.1") == [
        ("10.0.0.5", "db"),
        ("::1", "v6"),
        ("fd00::5", "six"),
        ("172.17.0.1", "gw"),
    ]


def sandbox(number: int, network: str, address: str, **more: object) -> Sandbox:
    request = SandboxRequest(
        container_id=f"{number:064x}",
        name=f"c{number}",
        hostname=f"h{number}",
        mode=network,
        **more,  # type: ignore[arg-type]  # fields by name
    )
    endpoint = Endpoint(
        id=f"e{number}", network_id=network, network=network, address=address, config={"Aliases": ["db"]}
    )
    return Sandbox(id=f"s{number}", request=request, endpoints=(endpoint,))


def test_hosts_file_of_a_user_defined_network_has_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "host_resolv_conf", lambda: HOST)
    mine = sandbox(1, "blue", "172.18.0.2", extra_hosts=("x:1.2.3.4",))
    others = [mine, sandbox(2, "blue", "172.18.0.3"), sandbox(3, "red", "172.19.0.2")]
    made = container_files(mine, others, "172.17.0.1", ("9.9.9.9",))
    assert made.hosts.splitlines()[6:] == [
        "1.2.3.4\tx",
        "172.18.0.2\th1",
        "172.18.0.3\tc2 db 000000000000 h2",
    ]
    assert made.resolv_conf.startswith("nameserver 9.9.9.9\n")


def test_default_bridge_has_no_names_of_peers() -> None:
    mine = sandbox(1, "bridge", "172.17.0.2")
    made = container_files(mine, [mine, sandbox(2, "bridge", "172.17.0.3")], "", ())
    assert made.hosts.splitlines()[6:] == ["172.17.0.2\th1"]
