"""How a command reaches an engine: unix socket, TCP with or without TLS, or ssh to another machine.

Rule: modules that only one of these needs are imported only for it; start-up time is the product here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from cli.errors import CommandFailed, EngineUnreachable

TLS_FILES = {"tlscacert": "ca.pem", "tlscert": "cert.pem", "tlskey": "key.pem"}

tls_options: dict[str, str] = {}
"""What the command line said of TLS: keys ``tls``, ``tlsverify`` (any value), and the paths of ``TLS_FILES``."""


def connect(host: str, environ: Mapping[str, str] = os.environ) -> socket.socket:
    """A fresh connection to ``host``; raises ``EngineUnreachable`` with the next step."""
    scheme, _, rest = host.partition("://")
    try:
        if scheme == "unix":
            return _unix(rest)
        if scheme == "tcp":
            return _tcp(rest, environ)
        if scheme == "ssh":
            return _ssh(rest)
    except PermissionError:
        raise EngineUnreachable(
            f"permission denied on {host}: join the group that owns the socket, or run as root"
        ) from None
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else error
        raise EngineUnreachable(f"cannot reach the engine at {host}: {reason} (start it with 'gantry up')") from None
    raise CommandFailed(f"unsupported host {host!r}: use unix://PATH, tcp://HOST:PORT or ssh://[USER@]HOST")


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _tcp(rest: str, environ: Mapping[str, str]) -> socket.socket:
    name, _, port = rest.rstrip("/").rpartition(":")
    name = name.strip("[]")
    sock = socket.create_connection((name, int(port)), timeout=None)
    options = _tls(environ)
    return _secured(sock, name, options) if options else sock


def _tls(environ: Mapping[str, str]) -> dict[str, str]:
    """TLS options from the command line and from Docker's environment; empty when TLS is off."""
    options = dict(tls_options)
    if environ.get("DOCKER_TLS_VERIFY"):
        options["tlsverify"] = "1"
    if not options:
        return {}
    directory = environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
    return {key: f"{directory}/{name}" for key, name in TLS_FILES.items()} | options


def _secured(sock: socket.socket, name: str, options: dict[str, str]) -> socket.socket:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "tlsverify" in options or "tlscacert" in tls_options:
            context.load_verify_locations(options["tlscacert"])
        else:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if os.path.exists(options["tlscert"]) or "tlsverify" in options:
            context.load_cert_chain(options["tlscert"], options["tlskey"])
    except OSError as error:
        sock.close()
        files = ", ".join(options[key] for key in TLS_FILES)
        raise CommandFailed(f"TLS: cannot use {error.filename or files}: {error.strerror or error}") from None
    try:
        return context.wrap_socket(sock, server_hostname=name)
    except ssl.SSLError as error:
        sock.close()
        raise EngineUnreachable(f"TLS with {name}: {getattr(error, 'verify_message', '') or error.reason}") from None


def half_close(sock: socket.socket) -> None:
    """Say that no more will be sent; what the engine still sends can be read."""
    goodbye = getattr(sock, "unwrap", None)
    if goodbye is None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # close_notify is out; the engine's own comes when it comes
        goodbye()
    with contextlib.suppress(OSError):
        sock.setblocking(True)


def _ssh(rest: str) -> socket.socket:
    """``ssh [USER@]HOST gantry system dial-stdio``, spoken to through one end of a socket pair."""
    import subprocess

    target, _, port = rest.rstrip("/").partition(":")
    if target.startswith("-") or not target:
        raise CommandFailed(f"unsupported host ssh://{rest}: use ssh://[USER@]HOST[:PORT]")
    ours, theirs = socket.socketpair()
    command = ["ssh", "-o", "ConnectTimeout=30", "-T", *(["-p", port] if port else []), "--", target]
    command.append("gantry system dial-stdio")
    with theirs:
        subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
    return ours
