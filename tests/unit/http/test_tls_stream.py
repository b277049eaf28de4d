"""TLS over streams: either side may end its half, and who has no right certificate gets nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy import certificates
from engine.http.tls import TlsStream, server_context

Talk = Callable[[ssl.SSLContext], ssl.SSLSocket]


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs")
    certificates.create(str(directory), ["localhost", "127.0.0.1"])
    return directory


def client(pem: Path, certificate: str = certificates.CLIENT, key: str = certificates.CLIENT_KEY) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pem / certificates.CA))
    if certificate:
        context.load_cert_chain(pem / certificate, pem / key)
    return context


async def upper_after_eof(stream: TlsStream) -> None:
    """Read to the client's end, then answer, then end our half and wait for nothing."""
    received = b""
    while data := await stream.read():
        received += data
    stream.write(received.upper())
    await stream.drain()


async def speak_first(stream: TlsStream) -> None:
    """Write and end our half, then read what the client says after it."""
    stream.write(b"hello")
    stream.write_eof()
    received = b""
    while data := await stream.read():
        received += data
    heard.append(received)


heard: list[bytes] = []


@pytest.fixture
def serve(pem: Path) -> Iterator[Callable[[Callable[[TlsStream], object]], Talk]]:
    """Start a TLS server that runs a coroutine per connection; gives a function that connects."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = server_context(
        *(str(pem / name) for name in (certificates.SERVER, certificates.SERVER_KEY, certificates.CA))
    )
    finished = threading.Event()

    def start(handler: Callable[[TlsStream], object]) -> Talk:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = TlsStream(context, reader, writer)
            try:
                await stream.handshake()
                await handler(stream)  # type: ignore[misc] # a coroutine function
                stream.close()
            except (ssl.SSLError, ConnectionError):
                writer.transport.abort()
            finally:
                finished.set()

        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(accept, "127.0.0.1", 0), loop).result(5)
        port = server.sockets[0].getsockname()[1]

        def connect(client_context: ssl.SSLContext) -> ssl.SSLSocket:
            raw = socket.create_connection(("127.0.0.1", port), timeout=10)
            return client_context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)

        return connect

    yield start
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def half_close(connection: ssl.SSLSocket) -> None:
    """Send close_notify without waiting for the peer's, as Go's CloseWrite does."""
    connection.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):  # the server's own goodbye may be here already
        connection.unwrap()
    connection.setblocking(True)


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_answer_after_the_clients_half_close(serve: Callable[..., Talk], pem: Path, size: int) -> None:
    connection = serve(upper_after_eof)(client(pem))
    connection.sendall(b"x" * size)
    half_close(connection)
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ssl.SSLZeroReturnError:
        pass
    assert received == b"X" * size


def test_reading_goes_on_after_our_half_close(serve: Callable[..., Talk], pem: Path) -> None:
    heard.clear()
    connection = serve(speak_first)(client(pem))
    assert connection.recv(100) == b"hello"
    assert connection.recv(100) == b""
    connection.sendall(b"late words")
    half_close(connection)
    connection.setblocking(False)
    for _ in range(500):
        if heard:
            break
        threading.Event().wait(0.01)
    assert heard == [b"late words"]


def expired(pem: Path) -> tuple[str, str]:
    """A client's certificate of the right authority, out of date."""
    authority = x509.load_pem_x509_certificate((pem / certificates.CA).read_bytes())
    authority_key = serialization.load_pem_private_key((pem / certificates.CA_KEY).read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    signed = certificates.sign(authority, authority_key, key, "late", usage, days=-1)
    (pem / "late.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (pem / "late-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return "late.pem", "late-key.pem"


def stranger(pem: Path) -> tuple[str, str]:
    """A client's certificate of another authority."""
    certificates.create(str(pem / "other"), ["localhost"])
    return "other/cert.pem", "other/key.pem"


def nobody(pem: Path) -> tuple[str, str]:
    """No certificate at all."""
    return "", ""


def servers_own(pem: Path) -> tuple[str, str]:
    """The right authority, the wrong purpose."""
    return certificates.SERVER, certificates.SERVER_KEY


@pytest.mark.parametrize("who", [expired, stranger, nobody, servers_own])
def test_wrong_client_gets_nowhere(
    serve: Callable[..., Talk], pem: Path, who: Callable[[Path], tuple[str, str]]
) -> None:
    connect = serve(upper_after_eof)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection = connect(client(pem, *who(pem)))
        connection.sendall(b"x")  # TLS 1.3 tells the client only after its handshake
        connection.recv(1)
