"""Entries of the container list are remembered, and made again after every change that shows in them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from engine.containers.config import ContainerConfig, HostConfig
from engine.containers.launch import sandbox_request
from engine.containers.listing import Listing
from engine.containers.machine import Machine
from engine.containers.model import Container, State
from engine.containers.registry import Registry
from engine.events import EventBus
from engine.network.model import Endpoint, Network, Sandbox
from engine.network.registry import NetworkRegistry
from engine.network.service import NetworkService
from engine.store import Store

ID = "a" * 64


class Shown:
    """A list of one container, over networks in memory."""

    def __init__(self, exec_root: str) -> None:
        self.store = Store(":memory:")
        self.networks = NetworkService(self.store, EventBus(), exec_root)
        doc = Container(
            id=ID, name="one", created_at=1, image_id="", image_manifest=None, chain_id="", snapshotter="overlayfs",
            platform="linux", path="true", args=(), config=ContainerConfig(image="busybox"),
            host=HostConfig(network_mode="mine"), state=State(status="created"),
        )  # fmt: skip
        self.machine = Machine(self.store, doc)
        self.listing = Listing(cast(Registry, SimpleNamespace(networks=self.networks)))

    def entry(self) -> dict[str, Any]:
        """What the list shows, which is what it would show without a memory."""
        shown: dict[str, Any] = msgspec.json.decode(self.listing.entry(self.machine))
        assert shown == msgspec.json.decode(msgspec.json.encode(self.listing.summary(self.machine)))
        assert list(shown) == list(self.listing.summary(self.machine))
        return shown


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    async def made() -> Shown:
        return Shown(str(tmp_path))

    return asyncio.run(made())


def test_an_entry_follows_its_container(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown.entry()["State"] == "created"
    with monkeypatch.context() as patched:
        patched.delattr(Listing, "summary")
        shown.listing.entry(shown.machine)  # nothing changed, so nothing is made again
    shown.machine.update(name="two")
    assert shown.entry()["Names"] == ["/two"]
    shown.machine.set_state(status="exited", exit_code=3, started_at=1, finished_at=2)
    found = shown.entry()
    assert (found["State"], found["Status"][:10]) == ("exited", "Exited (3)")


def test_an_entry_follows_its_networks(shown: Shown) -> None:
    assert shown.entry()["NetworkSettings"]["Networks"] == {}
    registry: NetworkRegistry = shown.networks.registry
    network = Network(id="f" * 64, name="mine", driver="null", created="")
    registry.record(network)
    assert shown.entry()["NetworkSettings"]["Networks"]["mine"]["NetworkID"] == network.id
    endpoint = Endpoint(id="e", network_id=network.id, network="mine", mac="02:42:ac:11:00:02")
    shown.networks.keep(Sandbox(id="s", request=sandbox_request(shown.machine.doc), endpoints=(endpoint,)))
    assert shown.entry()["NetworkSettings"]["Networks"]["mine"]["MacAddress"] == endpoint.mac
    registry.forget(network)
    assert shown.entry()["NetworkSettings"]["Networks"] == {}
