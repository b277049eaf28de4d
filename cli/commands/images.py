"""images, pull, load, rmi, image bootstrap."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from cli import progress
from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import CHUNK, Client
from cli.tables import age, size, table


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    add = out.add_argument
    if name == "images":
        add("-a", "--all", action="store_true")
        add("-q", "--quiet", action="store_true", help="only ids")
        add("--no-trunc", action="store_true")
    elif name == "pull":
        add("-q", "--quiet", action="store_true")
        add("--platform", metavar="OS/ARCH")
        add("image")
    elif name == "load":
        add("-i", "--input", metavar="FILE", help="default: standard input")
    elif name == "rmi":
        add("-f", "--force", action="store_true")
        add("image", nargs="+")
    else:
        commands = out.add_subparsers(dest="action", required=True, metavar="bootstrap")
        bootstrap = commands.add_parser("bootstrap", help="make a base image from the distribution's own packages")
        bootstrap.add_argument("image", metavar="busybox|debian[:SUITE]")
        bootstrap.add_argument("-t", "--tag", metavar="NAME", help="name of the result (default: as asked for)")
        bootstrap.add_argument("-q", "--quiet", action="store_true")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    commands = {"images": images, "pull": pull_command, "load": load, "rmi": rmi, "image": bootstrap}
    return commands[name](arguments)


def images(arguments: argparse.Namespace) -> int:
    """One line per name of each image."""
    rows = []
    for image in client(arguments).call("GET", "/images/json", {"all": arguments.all}):
        shown = image["Id"] if arguments.no_trunc else image["Id"].removeprefix("sha256:")[:12]
        for name in image["RepoTags"] or ["<none>:<none>"]:
            repository, _, tag = name.rpartition(":")
            rows.append((repository, tag, shown, f"{age(image['Created'])} ago", size(image["Size"])))
    if arguments.quiet:
        for image_id in dict.fromkeys(row[2] for row in rows):
            print(image_id)
    else:
        print(table(("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"), rows))
    return 0


def pull(engine: Client, image: str, *, platform: str | None = None, quiet: bool = False) -> None:
    """Pull ``image`` with progress on stderr."""
    repository, tag = split_tag(image)
    query = {"fromImage": repository, "tag": tag, "platform": platform}
    with engine.send("POST", "/images/create", dict(query)) as reply:
        progress.show(reply.messages(), quiet=quiet)


def split_tag(image: str) -> tuple[str, str | None]:
    """Name and tag of a reference; the tag is ``latest`` unless named, and None beside a digest."""
    if "@" in image:
        return image, None
    head, slash, last = image.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else "latest"


def pull_command(arguments: argparse.Namespace) -> int:
    """``gantry pull``."""
    pull(client(arguments, start=True), arguments.image, platform=arguments.platform, quiet=arguments.quiet)
    print(arguments.image)
    return 0


def _file_chunks(path: str | None) -> Iterator[bytes]:
    try:
        with sys.stdin.buffer if path is None else open(path, "rb") as file:
            while data := file.read(CHUNK):
                yield data
    except OSError as error:
        raise CommandFailed(f"cannot read {path or 'standard input'}: {error.strerror}") from None


def load(arguments: argparse.Namespace) -> int:
    """``gantry load``."""
    if arguments.input is None and sys.stdin.isatty():
        raise CommandFailed("no archive: give -i FILE or pipe one in")
    engine = client(arguments, start=True)
    headers = {"Content-Type": "application/x-tar"}
    stream = _file_chunks(arguments.input)
    with engine.send("POST", "/images/load", stream=stream, headers=headers) as reply:
        progress.show(reply.messages())
    return 0


def rmi(arguments: argparse.Namespace) -> int:
    """``gantry rmi``: every image is tried, the first error decides the status."""
    engine, status = client(arguments), 0
    for image in arguments.image:
        try:
            answer: list[dict[str, Any]] = engine.call("DELETE", f"/images/{image}", {"force": arguments.force})
        except CommandFailed as error:
            print(f"gantry: {error.message}", file=sys.stderr)
            status = status or error.status
            continue
        for entry in answer:
            for action, what in entry.items():
                print(f"{action}: {what}")
    return status


def bootstrap(arguments: argparse.Namespace) -> int:
    """``gantry image bootstrap``."""
    engine = client(arguments, start=True)
    query = {"image": arguments.image, "tag": arguments.tag}
    with engine.send("POST", "/gantry/images/bootstrap", dict(query)) as reply:
        progress.show(reply.messages(), quiet=arguments.quiet)
    print(arguments.tag or arguments.image)
    return 0
