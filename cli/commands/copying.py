"""cp and export: files between containers and this machine."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import posixpath
import sys
import tarfile
from collections.abc import Iterator
from typing import IO

from cli.engine import Parser, client
from cli.errors import ApiError, CommandFailed
from cli.http import Client

PIECE = 1 << 16
DIRECTORY = 1 << 31
"""Go's mode bit of a directory, as ``X-Docker-Container-Path-Stat`` has it."""


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    if name == "export":
        out.add_argument("-o", "--output", metavar="FILE", help="instead of standard output")
        out.add_argument("container")
        return out
    out.add_argument("-a", "--archive", action="store_true", help="keep owners")
    out.add_argument("source", help="CONTAINER:PATH, PATH, or - for an archive on standard input")
    out.add_argument("target", help="CONTAINER:PATH, PATH, or - for an archive on standard output")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    engine = client(arguments)
    if name == "export":
        return export(engine, arguments)
    (source, source_path), (target, target_path) = split(arguments.source), split(arguments.target)
    if bool(source) == bool(target):
        raise CommandFailed("cp needs one CONTAINER:PATH and one path of this machine", 125)
    if source:
        return fetch(engine, source, source_path, target_path)
    return put(engine, source_path, target, target_path, arguments.archive)


def split(text: str) -> tuple[str, str]:
    """(container, path); the container is empty for a path of this machine."""
    if text.startswith((".", "/", "~")) or ":" not in text:
        return "", text
    container, _, path = text.partition(":")
    return container, path


def export(engine: Client, arguments: argparse.Namespace) -> int:
    """The container's whole root file system as an archive."""
    if arguments.output is None and sys.stdout.isatty():
        raise CommandFailed("an archive is not for a terminal: use --output FILE or a pipe")
    with engine.send("GET", f"/containers/{arguments.container}/export") as reply:
        out = open(arguments.output, "wb") if arguments.output else sys.stdout.buffer  # noqa: SIM115 - stdout stays open
        for piece in reply.chunks():
            out.write(piece)
        out.flush()
        if arguments.output:
            out.close()
    return 0


class _Source(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the base class takes any buffer
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def fetch(engine: Client, container: str, path: str, target: str) -> int:
    """From a container to this machine, by cp's rules for names that exist and that do not."""
    with engine.send("GET", f"/containers/{container}/archive", {"path": path}) as reply:
        if target == "-":
            for piece in reply.chunks():
                sys.stdout.buffer.write(piece)
            return 0
        stat = json.loads(base64.b64decode(reply.headers["x-docker-container-path-stat"]))
        directory = bool(stat["mode"] & DIRECTORY)
        inside, name = os.path.isdir(target), stat["name"]
        if not inside and target.endswith("/") and not directory:
            raise CommandFailed(f"{target} does not exist: make it first")
        contents = directory and (path.endswith("/.") or not inside)
        parent, new = (target, name) if inside else os.path.split(os.path.abspath(target))
        with tarfile.open(fileobj=io.BufferedReader(_Source(reply.chunks())), mode="r|") as archive:
            for member in archive:
                _, slash, below = member.name.partition("/")
                member.name = f"{new}{slash}{below}" if not (contents and inside) else below or "."
                archive.extract(member, parent, filter="tar")
    return 0


def put(engine: Client, source: str, container: str, target: str, archive: bool) -> int:
    """From this machine into a container."""
    path = f"/containers/{container}/archive"
    query: dict[str, str | int | bool | None] = {"noOverwriteDirNonDir": True, "copyUIDGID": archive}
    if source == "-":
        pieces = iter(lambda: sys.stdin.buffer.read(PIECE), b"")
        engine.send("PUT", path, {**query, "path": target}, stream=pieces).close()
        return 0
    if not os.path.lexists(source):
        raise CommandFailed(f"{source} does not exist")
    into = _is_directory(engine, path, target)
    if not into and target.endswith("/") and not os.path.isdir(source):
        raise CommandFailed(f"{container}:{target} is no directory: make it first")
    parent, name = (target, os.path.basename(os.path.abspath(source))) if into else posixpath.split(target.rstrip("/"))
    if into and source.endswith("/."):
        name = "."
    packed = _packed(source, name)
    with packed:
        engine.send("PUT", path, {**query, "path": parent or "/"}, stream=iter(lambda: packed.read(PIECE), b"")).close()
    return 0


def _is_directory(engine: Client, path: str, target: str) -> bool:
    try:
        reply = engine.send("HEAD", path, {"path": target}, headers={"Connection": "close"})
    except ApiError:
        return False
    with reply:
        return bool(json.loads(base64.b64decode(reply.headers["x-docker-container-path-stat"]))["mode"] & DIRECTORY)


def _packed(source: str, name: str) -> IO[bytes]:
    """An archive of ``source`` under ``name``, in a file without a name."""
    import tempfile

    spool = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with tarfile.open(fileobj=spool, mode="w") as archive:
        archive.add(source, name)
    spool.seek(0)
    return spool
