"""What a name means to which container."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.network.dns.table import Record, Table, decode


def record(identifier: str, *networks: tuple[str, str, list[str]], **more: Any) -> Record:
    """A container; networks are (name, addresses split by blanks, names)."""
    return decode(
        {
            "id": identifier,
            "pin": f"/run/{identifier}",
            "networks": [
                {"id": f"id-{name}", "name": name, "addresses": addresses.split(), "names": names}
                for name, addresses, names in networks
            ],
            "links": {},
            "forward": True,
            "servers": [],
            "host_servers": [],
            "asks": True,
            "relays": [],
            **more,
        }
    )


def texts(table: Table, asking: Record, name: str) -> list[str] | None:
    found = table.addresses(asking, name)
    return None if found is None else [str(address) for address in found]


def test_names_are_the_networks_own() -> None:
    table = Table()
    web = record("1", ("blue", "10.0.0.2 fd00::2", ["Web", "www"]))
    both = record("2", ("blue", "10.0.0.3", ["db"]), ("red", "10.1.0.3", ["db"]))
    red = record("3", ("red", "10.1.0.2", ["web"]))
    for one in (web, both, red):
        table.put(one)
    assert texts(table, web, "WWW") == ["10.0.0.2", "fd00::2"], "case does not count"
    assert texts(table, both, "web") == ["10.0.0.2", "fd00::2"], "the first network that knows the name"
    assert texts(table, both, "web.red") == ["10.1.0.2"]
    assert texts(table, red, "web") == ["10.1.0.2"]
    assert texts(table, web, "web.red") is None, "not on that network"
    assert texts(table, web, "nobody") is None
    table.drop("2")
    assert texts(table, web, "db") is None
    assert table.get("2") is None


def test_services_are_all_addresses_in_turn() -> None:
    table = Table()
    for number in (2, 3, 4):
        table.put(record(str(number), ("blue", f"10.0.0.{number}", ["web", f"web-{number}"])))
    asking = table.get("2")
    assert asking is not None
    firsts = []
    for _ in range(6):
        found = texts(table, asking, "web")
        assert found is not None
        assert sorted(found) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
        firsts.append(found[0])
    assert sorted(firsts) == ["10.0.0.2", "10.0.0.2", "10.0.0.3", "10.0.0.3", "10.0.0.4", "10.0.0.4"]


def test_links_are_a_containers_own() -> None:
    table = Table()
    linking = record("1", ("blue", "10.0.0.2", ["one"]), links={"DB": "Postgres"})
    other = record("2", ("blue", "10.0.0.3", ["postgres"]))
    table.put(linking)
    table.put(other)
    assert texts(table, linking, "db") == ["10.0.0.3"]
    assert texts(table, other, "db") is None


def test_reverse() -> None:
    table = Table()
    one = record("1", ("blue", "10.0.0.2 fd00::2", ["web", "alias"]), ("bridge", "172.17.0.2", []))
    table.put(one)
    for member in one.memberships[:1]:
        for address in member.addresses:
            assert table.name_of(one, address) == "web.blue"
    assert table.name_of(one, one.memberships[1].addresses[0]) is None, "the default bridge has no names"


NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True)


class TableModel(RuleBasedStateMachine):
    """However records come and go, the indexes say what the records say."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.records: dict[str, Record] = {}

    @rule(number=st.integers(2, 6), networks=st.lists(st.sampled_from(["x", "y"]), unique=True), names=NAMES)
    def put(self, number: int, networks: list[str], names: list[str]) -> None:
        made = record(str(number), *((name, f"10.{ord(name)}.0.{number}", names) for name in networks))
        self.records[made.id] = made
        self.table.put(made)

    @rule(number=st.integers(2, 6))
    def drop(self, number: int) -> None:
        self.records.pop(str(number), None)
        self.table.drop(str(number))

    @invariant()
    def agrees(self) -> None:
        asking = record("1", ("x", "10.120.0.99", []))
        for name in ("a", "b", "c"):
            expected = {
                str(member.addresses[0])
                for one in self.records.values()
                for member in one.memberships
                if member.network == "x" and name in member.names
            }
            assert set(texts(self.table, asking, name) or ()) == expected
        assert sorted(self.table.ids()) == sorted(self.records)


TestTableModel = TableModel.TestCase
TestTableModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
