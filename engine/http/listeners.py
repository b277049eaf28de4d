"""Where the engine listens: ``unix://``, ``tcp://`` with or without TLS, and ``fd://`` for socket activation.

Rule: a socket is made with its final mode and group, and nothing listens in the clear beyond this machine unless that
was asked for by name. Sources: dockerd(8) ``--host``; sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import ssl
import stat
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog

from engine.config import LOOPBACK, Config, TlsFiles, refuse_plain_tcp
from engine.http.tls import server_context
from oci.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unavailable

log = structlog.get_logger()

PORT, TLS_PORT = 2375, 2376
FIRST_ACTIVATED = 3
"""First descriptor a service manager passes (``SD_LISTEN_FDS_START``)."""

SOCKET_MODE = 0o660
BACKLOG = 512


class Listener(NamedTuple):
    """A listening socket and the TLS it speaks (None: plain)."""

    socket: socket.socket
    tls: ssl.SSLContext | None = None


def open_listeners(url: str, config: Config, environ: Mapping[str, str] = os.environ) -> list[Listener]:
    """The sockets that ``url`` means, bound and listening.

    Raises ``InvalidArgument`` (not a URL we listen on), ``PermissionDenied`` (TCP in the clear), ``AlreadyExists``
    (the address is taken), ``FailedPrecondition`` (no socket was passed; certificates that cannot be used).
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return [Listener(_unix(parts.path, config.group))]
    if parts.scheme == "fd":
        return [Listener(s, _tls_for(s, config)) for s in _activated(parts.netloc, environ)]
    if parts.scheme == "tcp":
        host = parts.hostname or "127.0.0.1"
        refuse_plain_tcp(url, config)
        tls = _context(config.tls) if config.tls.on else None
        if tls is None and host not in LOOPBACK:
            log.warning("listening without TLS: whoever reaches this port owns the host", host=url)
        return [Listener(s, tls) for s in _tcp(host, parts.port or (PORT if tls is None else TLS_PORT), url)]
    raise InvalidArgument(f"cannot listen on {url!r}", hint="use unix://PATH, tcp://ADDRESS:PORT or fd://")


def _context(files: TlsFiles) -> ssl.SSLContext:
    try:
        return server_context(files.certificate, files.key, files.authority if files.verify else "")
    except OSError as error:
        where = getattr(error, "filename", None) or f"{files.certificate}, {files.key} or {files.authority}"
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
        raise FailedPrecondition(
            f"TLS: cannot use {where}: {reason or error}", hint="'gantry certs init --dir DIR' makes a usable set"
        ) from error


def _tls_for(listening: socket.socket, config: Config) -> ssl.SSLContext | None:
    """TLS for an activated socket: for TCP ones when it is on."""
    return _context(config.tls) if config.tls.on and listening.family != socket.AF_UNIX else None


def _unix(path: str, group: str) -> socket.socket:
    os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
    _remove_dead(path)
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listening.bind(path)
    except OSError as error:
        listening.close()
        raise Unavailable(f"cannot listen on unix://{path}: {error.strerror}") from error
    finally:
        os.umask(before)
    _give_to_group(path, group)
    listening.listen(BACKLOG)
    return listening


def _remove_dead(path: str) -> None:
    """Remove a socket nobody listens on; anything else at ``path`` is not ours to remove."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise AlreadyExists(f"cannot listen on unix://{path}: the path exists and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                raise AlreadyExists(f"cannot listen on unix://{path}: something answers there already")
        os.unlink(path)


def _give_to_group(path: str, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.info("no such group, the socket stays with ours", group=group, socket=path)
    except OSError as error:
        raise Unavailable(f"cannot give {path} to group {group}: {error.strerror}") from error


def _tcp(host: str, port: int, url: str) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InvalidArgument(f"cannot listen on {url}: {error.strerror}") from error
    opened: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            opened.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
    except OSError as error:
        for listening in opened:
            listening.close()
        kind_of = AlreadyExists if error.errno == errno.EADDRINUSE else Unavailable
        raise kind_of(f"cannot listen on {url}: {error.strerror}") from error
    return opened


def _activated(name: str, environ: Mapping[str, str]) -> list[socket.socket]:
    """Sockets passed by the service manager: all (``fd://``, ``fd://*``), one by number, or those of a name."""
    count = int(environ.get("LISTEN_FDS") or "0") if environ.get("LISTEN_PID") == str(os.getpid()) else 0
    numbers = range(FIRST_ACTIVATED, FIRST_ACTIVATED + count)
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    chosen = [
        number
        for index, number in enumerate(numbers)
        if name in ("", "*", str(number)) or (index < len(names) and name == names[index])
    ]
    if not chosen:
        raise FailedPrecondition(
            f"fd://{name}: no such socket was passed by the service manager",
            hint="start the engine by its socket unit (LISTEN_FDS), or use unix://PATH",
        )
    for number in chosen:
        os.set_inheritable(number, False)
    return [socket.socket(fileno=number) for number in chosen]
