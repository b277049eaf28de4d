"""network ls, create, rm, inspect, connect, disconnect, prune."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import Client
from cli.tables import table

API_DRIVERS = "bridge, macvlan, ipvlan"


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of ``gantry network``."""
    out = Parser(f"gantry {name}")
    commands = out.add_subparsers(dest="action", required=True, metavar="COMMAND", parser_class=Parser)
    listing = commands.add_parser("ls", help="list networks")
    listing.add_argument("-q", "--quiet", action="store_true", help="only ids")
    listing.add_argument("--no-trunc", action="store_true")
    listing.add_argument("-f", "--filter", action="append", default=[], metavar="KEY=VALUE")
    _create(commands.add_parser("create", help="make a network"))
    removal = commands.add_parser("rm", help="remove networks")
    removal.add_argument("-f", "--force", action="store_true", help="a network that is not there is no error")
    removal.add_argument("network", nargs="+")
    commands.add_parser("inspect", help="show everything about networks, as JSON").add_argument("network", nargs="+")
    connection = commands.add_parser("connect", help="connect a container, running or not")
    connection.add_argument("--ip", metavar="ADDRESS")
    connection.add_argument("--ip6", metavar="ADDRESS")
    connection.add_argument("--alias", action="append", metavar="NAME", help="a further name on this network")
    connection.add_argument("--link", action="append", metavar="CONTAINER:ALIAS")
    connection.add_argument("--driver-opt", action="append", default=[], metavar="KEY=VALUE")
    connection.add_argument(
        "--gw-priority", type=int, default=0, metavar="N", help="the highest gives the default route"
    )
    end = commands.add_parser("disconnect", help="disconnect a container")
    end.add_argument(
        "-f", "--force", action="store_true", help="for scripts written for docker: it changes nothing here"
    )
    for one in (connection, end):
        one.add_argument("network")
        one.add_argument("container")
    prune = commands.add_parser("prune", help="remove every network that no container is on")
    prune.add_argument("-f", "--force", action="store_true", help="do not ask")
    prune.add_argument("--filter", action="append", default=[], metavar="KEY=VALUE")
    return out


def _create(out: argparse.ArgumentParser) -> None:
    add = out.add_argument
    add("-d", "--driver", default="bridge", help=API_DRIVERS)
    add("-o", "--opt", action="append", default=[], metavar="KEY=VALUE")
    add("--subnet", action="append", default=[], metavar="CIDR")
    add("--gateway", action="append", default=[], metavar="ADDRESS")
    add("--ip-range", action="append", default=[], metavar="CIDR", help="hand out addresses of this part only")
    add("--aux-address", action="append", default=[], metavar="NAME=ADDRESS", help="an address to leave alone")
    add("--ipv6", action="store_true", default=None)
    add("--no-ipv4", action="store_true", help="IPv6 only")
    add("--internal", action="store_true", help="no way out")
    add("--attachable", action="store_true", help=argparse.SUPPRESS)
    add("--label", action="append", default=[], metavar="KEY=VALUE")
    add("--config-only", action="store_true", help="only settings for other networks")
    add("--config-from", default="", metavar="NETWORK", help="take the settings of a --config-only network")
    add("network")


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one ``gantry network`` command."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "ls": listing,
        "create": create,
        "rm": remove,
        "inspect": inspect,
        "connect": connect,
        "disconnect": disconnect,
        "prune": prune,
    }
    return actions[arguments.action](arguments)


def filters(texts: Iterable[str]) -> str | None:
    """``key=value`` options as the API's filters; None for none."""
    out: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise CommandFailed(f"invalid filter {text!r}: write KEY=VALUE", 125)
        out.setdefault(key, []).append(value)
    return json.dumps(out) if out else None


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """``key=value`` options as an object; a key alone has an empty value."""
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def listing(arguments: argparse.Namespace) -> int:
    """``gantry network ls``."""
    found = client(arguments).call("GET", "/networks", {"filters": filters(arguments.filter)})
    rows = []
    for network in sorted(found, key=lambda n: str(n["Name"])):
        shown = network["Id"] if arguments.no_trunc else network["Id"][:12]
        subnets = ", ".join(pool.get("Subnet", "") for pool in network["IPAM"]["Config"] or ())
        rows.append((shown, network["Name"], network["Driver"], subnets))
    if arguments.quiet:
        for row in rows:
            print(row[0])
    else:
        print(table(("NETWORK ID", "NAME", "DRIVER", "SUBNETS"), rows))
    return 0


def pools(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """``IPAM.Config``: each gateway, range and auxiliary address in the subnet that holds it."""
    from ipaddress import ip_address, ip_network

    out: list[dict[str, Any]] = [{"Subnet": subnet} for subnet in arguments.subnet]

    def holder(text: str) -> dict[str, Any]:
        try:
            address = ip_address(text.partition("/")[0])
            for pool in out:
                if address in ip_network(pool["Subnet"], strict=False):
                    return pool
        except ValueError as error:
            raise CommandFailed(str(error), 125) from None
        raise CommandFailed(f"no matching subnet for {text}: give it with --subnet", 125)

    for key, texts in (("Gateway", arguments.gateway), ("IPRange", arguments.ip_range)):
        for text in texts:
            holder(text)[key] = text
    for name, address in pairs(arguments.aux_address).items():
        holder(address).setdefault("AuxiliaryAddresses", {})[name] = address
    return out


def create(arguments: argparse.Namespace) -> int:
    """``gantry network create``: prints the id."""
    body = {
        "Name": arguments.network,
        "Driver": arguments.driver,
        "Options": pairs(arguments.opt),
        "Labels": pairs(arguments.label),
        "Internal": arguments.internal,
        "Attachable": arguments.attachable,
        "EnableIPv6": arguments.ipv6,
        "EnableIPv4": False if arguments.no_ipv4 else None,
        "ConfigOnly": arguments.config_only,
        "IPAM": {"Driver": "default", "Config": pools(arguments)},
    }
    if arguments.config_from:
        body["ConfigFrom"] = {"Network": arguments.config_from}
    print(client(arguments, start=True).call("POST", "/networks/create", body=body)["Id"])
    return 0


def _each(names: Iterable[str], act: Callable[[str], None]) -> int:
    """Do it for every name; the first error decides the status."""
    status = 0
    for name in names:
        try:
            act(name)
        except CommandFailed as error:
            print(f"gantry: {error.message}", file=sys.stderr)
            status = status or error.status
    return status


def remove(arguments: argparse.Namespace) -> int:
    """``gantry network rm``."""
    engine = client(arguments)

    def act(name: str) -> None:
        try:
            engine.call("DELETE", f"/networks/{name}")
        except CommandFailed as error:
            if not (arguments.force and "not found" in error.message):
                raise
            return
        print(name)

    return _each(arguments.network, act)


def inspect(arguments: argparse.Namespace) -> int:
    """``gantry network inspect``."""
    engine, found = client(arguments), []
    status = _each(arguments.network, lambda name: found.append(engine.call("GET", f"/networks/{name}")))
    print(json.dumps(found, indent=4))
    return status


def connect(arguments: argparse.Namespace) -> int:
    """``gantry network connect``."""
    addresses = {"IPv4Address": arguments.ip, "IPv6Address": arguments.ip6}
    endpoint = {
        "IPAMConfig": {key: value for key, value in addresses.items() if value} or None,
        "Aliases": arguments.alias,
        "Links": arguments.link,
        "DriverOpts": pairs(arguments.driver_opt) or None,
        "GwPriority": arguments.gw_priority,
    }
    body = {"Container": arguments.container, "EndpointConfig": endpoint}
    client(arguments).call("POST", f"/networks/{arguments.network}/connect", body=body)
    return 0


def disconnect(arguments: argparse.Namespace) -> int:
    """``gantry network disconnect``."""
    body = {"Container": arguments.container, "Force": arguments.force}
    client(arguments).call("POST", f"/networks/{arguments.network}/disconnect", body=body)
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """``gantry network prune``: asks first, unless told not to."""
    if not arguments.force:
        if not sys.stdin.isatty():
            raise CommandFailed("prune removes networks: say --force where nobody can be asked")
        if input("Remove all networks that no container is on? [y/N] ").strip().lower() not in ("y", "yes"):
            return 0
    return _prune(client(arguments), filters(arguments.filter))


def _prune(engine: Client, wanted: str | None) -> int:
    answer = engine.call("POST", "/networks/prune", {"filters": wanted})
    for name in answer["NetworksDeleted"] or ():
        print(name)
    return 0
