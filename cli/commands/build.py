"""build: a directory, an archive or an address becomes an image.

Rule: the image's id goes to stdout, all that is told about the build to stderr.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import CHUNK

MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""Packed archives: gzip, bzip2, xz, zstd. A plain tar shows itself at offset 257."""


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of ``gantry build``."""
    out = Parser("gantry build")
    add = out.add_argument
    add("-t", "--tag", action="append", default=[], metavar="NAME[:TAG]")
    add("-f", "--file", metavar="FILE", help="the Dockerfile, - for standard input (default: Dockerfile)")
    add("--target", metavar="STAGE", help="stop at this stage")
    add("--build-arg", action="append", default=[], metavar="NAME[=VALUE]", help="without a value: from here")
    add("--label", action="append", default=[], metavar="NAME=VALUE")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="id=ID[,src=FILE|,env=NAME]",
        help="for RUN --mount=type=secret",
    )
    add("--cache-from", action="append", default=[], metavar="IMAGE")
    add("--no-cache", action="store_true", help="run every step again")
    add("--pull", action="store_true", help="ask the registry for newer base images")
    add("--platform", metavar="OS/ARCH")
    add("--network", default="", metavar="MODE", help="network of RUN steps: default, none, host")
    add("--add-host", action="append", default=[], metavar="NAME:IP")
    add("--shm-size", metavar="BYTES")
    add("--allow", action="append", default=[], metavar="NAME", help="for RUN: network.host, security.insecure")
    add("--squash", action="store_true", help="put all new layers into one")
    add("--progress", choices=("auto", "plain", "quiet"), default="auto")
    add("--check", action="store_true", help="tell what is likely a mistake in the Dockerfile, and build nothing")
    add("-q", "--quiet", action="store_true", help="print the id alone")
    add("context", metavar="DIRECTORY | URL | -", help="what COPY may copy; - reads an archive or a Dockerfile")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """``gantry build``."""
    from cli.buildview import show

    query = _query(arguments)
    stream, dockerfile, remote = _context(arguments)
    pairs = [*query, ("dockerfile", dockerfile), ("remote", remote)]
    text = "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs if value)
    headers = {"Content-Type": "application/x-tar", **_registries(), **_secrets(arguments.secret)}
    quiet = arguments.quiet or arguments.progress == "quiet"
    engine = client(arguments, start=True)
    if arguments.check:
        from cli.buildcheck import show_findings

        with engine.send("POST", f"/build?{text}&check=1", stream=stream, headers=headers) as reply:
            return show_findings(reply.messages())
    with engine.send("POST", f"/build?{text}", stream=stream, headers=headers) as reply:
        image = show(reply.messages(), "quiet" if quiet else arguments.progress)
    print(image)
    return 0


def _query(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    pairs = [("t", tag) for tag in arguments.tag] + [("progress", "steps"), ("version", "1")]
    pairs += [("target", arguments.target or ""), ("platform", arguments.platform or "")]
    pairs += [("networkmode", arguments.network), ("shmsize", _bytes(arguments.shm_size))]
    pairs += [("extrahosts", host) for host in arguments.add_host]
    pairs += [("nocache", "1" if arguments.no_cache else ""), ("pull", "1" if arguments.pull else "")]
    pairs += [("allow", name) for name in arguments.allow]
    pairs += [("squash", "1" if arguments.squash else "")]
    pairs += [(key, json.dumps(value) if value else "") for key, value in (
        ("buildargs", _mapping(arguments.build_arg, os.environ.get)),
        ("labels", _mapping(arguments.label, lambda name: "")),
        ("cachefrom", arguments.cache_from),
    )]  # fmt: skip
    return pairs


def _mapping(options: list[str], default: Any) -> dict[str, str | None]:
    return {name: value if equals else default(name) for name, equals, value in (o.partition("=") for o in options)}


def _bytes(text: str | None) -> str:
    if not text:
        return ""
    number, unit = text.rstrip("bkmgBKMG"), text.lower().lstrip("0123456789")[:1]
    if not number.isdigit():
        raise CommandFailed(f"invalid size {text!r}: a number with b, k, m or g", 125)
    return str(int(number) << {"k": 10, "m": 20, "g": 30}.get(unit, 0))


def _context(arguments: argparse.Namespace) -> tuple[Iterator[bytes] | None, str, str]:
    """What to send, the Dockerfile's name in it, and the address that the engine shall fetch instead."""
    where, file = arguments.context, arguments.file
    if where.startswith(("http://", "https://", "git://", "git@", "ssh://")):
        return None, file or "", where
    if where == "-":
        if file == "-":
            raise CommandFailed("the context and the Dockerfile cannot both come from standard input", 125)
        return _piped(file)
    if not os.path.isdir(where):
        raise CommandFailed(f"no build context: {where} is not a directory")
    from cli.packing import Context

    text = sys.stdin.buffer.read() if file == "-" else None
    context = Context(where, None if file == "-" else file, text)
    return context.archive(), context.dockerfile, ""


def _piped(file: str | None) -> tuple[Iterator[bytes], str, str]:
    """Standard input: an archive goes on as it is, anything else is a Dockerfile without a context."""
    head = sys.stdin.buffer.read(512)
    if head.startswith(MAGICS) or head[257:262] == b"ustar":
        return _rest(head), file or "", ""
    if file:
        raise CommandFailed("standard input is no archive: -f has nothing to name a file in", 125)
    import tempfile

    from cli.packing import Context

    with tempfile.TemporaryDirectory() as empty:
        context = Context(empty, None, head + sys.stdin.buffer.read())
        return iter(list(context.archive())), context.dockerfile, ""


def _rest(head: bytes) -> Iterator[bytes]:
    yield head
    while data := sys.stdin.buffer.read(CHUNK):
        yield data


def _registries() -> dict[str, str]:
    """``X-Registry-Config``: what ``docker login`` stored, for base images."""
    from cli.commands.images import credentials

    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(f"{directory}/config.json") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}
    found = {}
    for host in {*(known.get("auths") or {}), *(known.get("credHelpers") or {})}:
        header = credentials(host if "://" not in host else "library").get("X-Registry-Auth")
        if header:
            found[host] = json.loads(base64.urlsafe_b64decode(header))
    if not found:
        return {}
    return {"X-Registry-Config": base64.urlsafe_b64encode(json.dumps(found).encode()).decode()}


def _secrets(options: list[str]) -> dict[str, str]:
    """``X-Gantry-Build-Secrets``: base64 of a JSON object, values base64 again."""
    found = {}
    for option in options:
        fields = dict(part.partition("=")[::2] for part in option.split(","))
        name = fields.get("id") or os.path.basename(fields.get("src", fields.get("source", "")))
        source = fields.get("src", fields.get("source"))
        variable = fields.get("env", name if source is None else None)
        if not name:
            raise CommandFailed(f"invalid secret {option!r}: id=ID[,src=FILE|,env=NAME]", 125)
        if source is None and variable in os.environ:
            value = os.environb[os.fsencode(str(variable))]
        else:
            value = _file(source or name)
        found[name] = base64.b64encode(value).decode()
    if not found:
        return {}
    return {"X-Gantry-Build-Secrets": base64.b64encode(json.dumps(found).encode()).decode()}


def _file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CommandFailed(f"cannot read the secret {path}: {error.strerror}") from None
