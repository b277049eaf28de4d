"""Modules that come into being when they are used, and asyncio that learns of ssl later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.certificates import Authority

ROOT = Path(__file__).resolve().parents[3]

DEFERRED = """
import sys, threading
from oci import frugal
frugal.defer("fractions", "xml.dom.minidom", "nowhere_at_all", "sys")
import fractions, xml.dom.minidom, nowhere_at_all
from xml.dom import minidom
assert "decimal" not in sys.modules and "xml.dom.expatbuilder" not in sys.modules
assert not hasattr(fractions, "__file__") and "decimal" not in sys.modules, "who looks through modules loads none"

found, together = [], threading.Barrier(8)
def use():
    together.wait(20)
    found.append(fractions.Fraction(1, 3))
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 8 and len({type(one) for one in found}) == 1
import fractions as real
assert real.__file__ and real.Fraction is fractions.Fraction
assert xml.dom.minidom.parseString("<a/>").documentElement.tagName == "a"
assert minidom.Document is xml.dom.minidom.Document is sys.modules["xml.dom.minidom"].Document
from fractions import Fraction
try:
    fractions.Nothing
except AttributeError as error:
    assert "Nothing" in str(error)
else:
    raise AssertionError("a name that is not there")
try:
    nowhere_at_all.anything
except ModuleNotFoundError as error:
    assert "nowhere_at_all" in str(error)
else:
    raise AssertionError("a module that is not there")
assert sys.modules["sys"] is sys
"""

TLS = """
import sys
from oci import frugal
frugal.defer("ssl")
frugal.import_asyncio()
import asyncio, ssl
ca, certificate, key, path = sys.argv[1:]

async def upper(reader, writer):
    writer.write((await reader.readline()).upper() * 50_000)
    await writer.drain()
    writer.close()

async def main():
    plain = await asyncio.start_unix_server(upper, path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"a")
    writer.write_eof()
    assert await reader.read() == b"A" * 50_000
    assert "_ssl" not in sys.modules, "sockets without TLS need none"

    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(certificate, key)
    server = await asyncio.start_server(upper, "127.0.0.1", 0, ssl=own)
    at = ("127.0.0.1", server.sockets[0].getsockname()[1])
    believing = ssl.create_default_context(cafile=ca)
    reader, writer = await asyncio.open_connection(*at, ssl=believing, server_hostname="localhost")
    writer.write(b"tls\\n")
    assert await reader.read() == b"TLS\\n" * 50_000
    reader, writer = await asyncio.open_connection(*at)
    await writer.start_tls(believing, server_hostname="localhost")
    writer.write(b"later\\n")
    assert await reader.read() == b"LATER\\n" * 50_000
    try:
        await asyncio.open_connection(*at, ssl=ssl.create_default_context(), server_hostname="localhost")
    except ssl.SSLCertVerificationError:
        return
    raise AssertionError("a certificate of nobody's authority was taken")

asyncio.run(asyncio.wait_for(main(), 60))
"""


def run(program: str, *arguments: object) -> None:
    # In a process of its own: here everything has been imported long since.
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_a_deferred_module_comes_with_its_first_use() -> None:
    run(DEFERRED)


def test_asyncio_does_tls_once_somebody_uses_ssl(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    run(TLS, authority.ca, *authority.server("localhost"), tmp_path / "s")
