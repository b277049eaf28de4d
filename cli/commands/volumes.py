"""volume ls, create, inspect, rm, prune."""

from __future__ import annotations

import argparse
import json

from cli.commands.containers import each
from cli.commands.lifecycle import filters_of
from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import Client
from cli.tables import size, table


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of ``gantry volume``."""
    out = Parser(f"gantry {name}")
    commands = out.add_subparsers(dest="action", required=True, metavar="ls|create|inspect|rm|prune")
    listing = commands.add_parser("ls", help="list volumes")
    listing.add_argument("-q", "--quiet", action="store_true", help="only names")
    listing.add_argument("-f", "--filter", action="append", default=[], metavar="KEY=VALUE")
    create = commands.add_parser("create", help="make a volume")
    create.add_argument("name", nargs="?", default="")
    create.add_argument("-d", "--driver", default="local")
    create.add_argument("-o", "--opt", action="append", default=[], metavar="KEY=VALUE", help="type, device or o")
    create.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    for word, text in (("inspect", "show everything as JSON"), ("rm", "remove volumes")):
        command = commands.add_parser(word, help=text)
        command.add_argument("name", nargs="+")
        if word == "rm":
            command.add_argument("-f", "--force", action="store_true", help="one that is not there is no error")
    prune = commands.add_parser("prune", help="remove unused anonymous volumes")
    prune.add_argument("-a", "--all", action="store_true", help="named ones too")
    prune.add_argument("-f", "--force", action="store_true", help="do not ask")
    prune.add_argument("--filter", action="append", default=[], metavar="KEY=VALUE")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    engine = client(arguments)
    actions = {"ls": listing, "create": create, "inspect": inspect, "rm": remove, "prune": prune}
    return actions[arguments.action](engine, arguments)


def listing(engine: Client, arguments: argparse.Namespace) -> int:
    """One line per volume."""
    found = engine.call("GET", "/volumes", {"filters": filters_of(arguments.filter)})["Volumes"]
    if arguments.quiet:
        for volume in found:
            print(volume["Name"])
        return 0
    print(table(("DRIVER", "VOLUME NAME"), [(volume["Driver"], volume["Name"]) for volume in found]))
    return 0


def create(engine: Client, arguments: argparse.Namespace) -> int:
    """A new volume; its name."""
    body = {
        "Name": arguments.name,
        "Driver": arguments.driver,
        "DriverOpts": dict(item.partition("=")[::2] for item in arguments.opt),
        "Labels": dict(item.partition("=")[::2] for item in arguments.label),
    }
    print(engine.call("POST", "/volumes/create", body=body)["Name"])
    return 0


def inspect(engine: Client, arguments: argparse.Namespace) -> int:
    """Volumes as one JSON array."""
    print(json.dumps([engine.call("GET", f"/volumes/{one}") for one in arguments.name], indent=4))
    return 0


def remove(engine: Client, arguments: argparse.Namespace) -> int:
    """Remove volumes that no container uses."""
    return each(arguments.name, lambda one: engine.call("DELETE", f"/volumes/{one}", {"force": arguments.force}))


def prune(engine: Client, arguments: argparse.Namespace) -> int:
    """Remove volumes that no container uses."""
    if not arguments.force:
        raise CommandFailed("this removes volumes and what is in them: say --force", 125)
    words = [*arguments.filter, *(["all=true"] if arguments.all else [])]
    answer = engine.call("POST", "/volumes/prune", {"filters": filters_of(words)})
    for one in answer["VolumesDeleted"] or ():
        print(one)
    print(f"reclaimed {size(answer['SpaceReclaimed'])}")
    return 0
