"""certs init: certificates for an engine that listens on TCP."""

from __future__ import annotations

import argparse
import os

from cli.engine import Parser
from cli.errors import CommandFailed
from oci.errors import GantryError


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of ``gantry certs``."""
    out = Parser(f"gantry {name}")
    commands = out.add_subparsers(dest="action", required=True, metavar="init")
    init = commands.add_parser("init", help="make an authority, a server's and a client's certificate")
    init.add_argument("--dir", metavar="DIR", default="~/.docker", help="where the files go (default ~/.docker)")
    init.add_argument("--host", dest="names", action="append", required=True, metavar="NAME_OR_IP",
                      help="by which clients call this engine; may be repeated")  # fmt: skip
    init.add_argument("--days", type=int, default=825, help="how long they are good for (default 825)")
    init.add_argument("--force", action="store_true", help="replace what is there")
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """``gantry certs init``: six files under Docker's names, and the commands that use them."""
    from deploy import certificates

    directory = os.path.abspath(os.path.expanduser(arguments.dir))
    names = [part for given in arguments.names for part in given.split(",") if part]
    try:
        written = certificates.create(directory, names, days=arguments.days, force=arguments.force)
    except GantryError as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"cannot write to {directory}: {error.strerror}") from None
    for path in written:
        print(path)
    server = f"--tlsverify --tlscacert {directory}/ca.pem --tlscert {directory}/server-cert.pem"
    print(f"engine: gantryd -H tcp://0.0.0.0:2376 {server} --tlskey {directory}/server-key.pem")
    print(f"client: docker -H tcp://{names[0]}:2376 --tlsverify (ca.pem, cert.pem and key.pem in ~/.docker)")
    return 0
