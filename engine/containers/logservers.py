"""Log drivers that send to a server: syslog, journald, fluentd.

Rule: what was sent and not taken is sent again, whole (``send`` raises); so a line comes at least once. Sources:
RFC 3164, RFC 5424, RFC 5425 (framing on TLS), systemd.io/JOURNAL_NATIVE_PROTOCOL, fluentd's Forward Protocol
Specification v1.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import socket
import time
from typing import Any, NamedTuple

import msgspec

from engine.containers.logoptions import FACILITIES, flag, fluentd_address, syslog_address
from engine.containers.logs import expand_tag, extras
from engine.containers.logwire import Address, Wire, files_of
from engine.containers.machine import Machine
from engine.containers.times import SECOND, rfc3339, rfc3339_fixed
from protos.rawlog import STDERR, Line

DATAGRAM = 60 << 10
ACK_SECONDS = 10.0
JOURNAL = Address("unixgram", path="/run/systemd/journal/socket")


class Piece(NamedTuple):
    """Which part of a line longer than a message may be: its line's id, its number from 1, whether it is the last."""

    id: str
    ordinal: int
    last: bool


class _Pieces:
    """Numbers the pieces of long lines, stream by stream."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, int]] = {}

    def of(self, lines: list[Line]) -> list[tuple[Line, Piece | None]]:
        """``lines`` and which piece each is; None for whole ones. ``keep`` makes it known that they were taken."""
        self._next = dict(self._open)
        return [(line, self._piece(line)) for line in lines]

    def _piece(self, line: Line) -> Piece | None:
        ident, ordinal = self._next.pop(line.stream, ("", 0))
        if line.complete and not ident:
            return None
        ident = ident or secrets.token_hex(32)
        if not line.complete:
            self._next[line.stream] = ident, ordinal + 1
        return Piece(ident, ordinal + 1, line.complete)

    def keep(self) -> None:
        """The lines of the last ``of`` will not be asked for again."""
        self._open = self._next


class Syslog:
    """RFC 3164 or RFC 5424 messages to a local or remote syslog."""

    def __init__(self, machine: Machine, options: dict[str, str]) -> None:
        address = syslog_address(options)
        self._wire = Wire(address, files_of(options, "syslog"))
        facility = options.get("syslog-facility", "daemon")
        self._facility = int(facility) if facility.isdecimal() else FACILITIES.index(facility)
        self._format = options.get("syslog-format", "")
        self._counted = address.kind == "tls" and self._format.startswith("rfc5424")
        self._tag = expand_tag(options.get("tag") or "{{.ID}}", machine)

    def size(self) -> int:
        return 0

    def send(self, lines: list[Line]) -> None:
        self._wire.connect()
        packets = [self._encode(line) for line in lines]
        if self._counted:
            packets = [b"%d %s" % (len(packet), packet) for packet in packets]
        elif self._wire.is_stream:
            packets = [packet + b"\n" for packet in packets]
        self._wire.send(packets)

    def _encode(self, line: Line) -> bytes:
        priority = self._facility * 8 + (3 if line.stream == STDERR else 6)
        host, pid, text = socket.gethostname(), os.getpid(), line.data.rstrip(b"\n")
        if self._format.startswith("rfc5424"):
            stamp = rfc3339_fixed(line.time_ns)[: 26 if self._format == "rfc5424micro" else 19]
            head = f"<{priority}>1 {stamp}Z {host} {self._tag} {pid} {self._tag} - "
        else:
            stamp = time.strftime("%b %e %H:%M:%S", time.localtime(line.time_ns / 1e9))
            head = f"<{priority}>{stamp} {f'{host} ' if self._format else ''}{self._tag}[{pid}]: "
        return head.encode() + text

    def close(self) -> None:
        self._wire.close()


class Journald:
    """systemd's journal, by its native protocol."""

    def __init__(self, machine: Machine) -> None:
        self._wire = Wire(JOURNAL)
        self._pieces = _Pieces()
        doc = machine.doc
        tag = expand_tag((doc.host.log_config.config or {}).get("tag") or "{{.ID}}", machine)
        fields = {
            "CONTAINER_ID": doc.id[:12],
            "CONTAINER_ID_FULL": doc.id,
            "CONTAINER_NAME": doc.name,
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": doc.config.image,
            "SYSLOG_IDENTIFIER": tag,
        }
        fields |= {re.sub(r"[^A-Z0-9_]", "_", k.upper()).lstrip("_"): v for k, v in extras(machine).items()}
        self._fields = b"".join(journal_field(k, v.encode()) for k, v in fields.items() if k)

    def size(self) -> int:
        return 0

    def send(self, lines: list[Line]) -> None:
        self._wire.send([self._encode(line, piece) for line, piece in self._pieces.of(lines)])
        self._pieces.keep()

    def _encode(self, line: Line, piece: Piece | None) -> bytes:
        own = {"PRIORITY": "3" if line.stream == STDERR else "6", "SYSLOG_TIMESTAMP": rfc3339(line.time_ns)}
        if piece is not None:
            own |= {"CONTAINER_PARTIAL_ID": piece.id, "CONTAINER_PARTIAL_ORDINAL": str(piece.ordinal)}
            own |= {"CONTAINER_PARTIAL_LAST": str(piece.last).lower()}
            own |= {} if piece.last else {"CONTAINER_PARTIAL_MESSAGE": "true"}
        told = b"".join(journal_field(name, value.encode()) for name, value in own.items())
        return self._fields + told + journal_field("MESSAGE", line.data.rstrip(b"\n")[:DATAGRAM])

    def close(self) -> None:
        self._wire.close()


def journal_field(name: str, value: bytes) -> bytes:
    """One field; values with a newline in them go with their length."""
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


class Fluentd:
    """fluentd's forward protocol: a message a line, or with acknowledgements a batch that must be answered for."""

    def __init__(self, machine: Machine, options: dict[str, str]) -> None:
        self._wire = Wire(fluentd_address(options))
        self._pieces = _Pieces()
        self._fine = flag(options.get("fluentd-sub-second-precision", "false"), "fluentd-sub-second-precision")
        self._acknowledged = flag(options.get("fluentd-request-ack", "false"), "fluentd-request-ack")
        self._tag = expand_tag(options.get("tag") or "{{.ID}}", machine)
        self._record = {"container_id": machine.id, "container_name": f"/{machine.doc.name}", **extras(machine)}

    def size(self) -> int:
        return 0

    def send(self, lines: list[Line]) -> None:
        entries = [self._entry(line, piece) for line, piece in self._pieces.of(lines)]
        if self._acknowledged:
            chunk = base64.b64encode(secrets.token_bytes(16)).decode()
            self._wire.send([msgspec.msgpack.encode([self._tag, entries, {"chunk": chunk}])])
            self._await_ack(chunk)
        else:
            self._wire.send([msgspec.msgpack.encode([self._tag, *entry]) for entry in entries])
        self._pieces.keep()

    def _entry(self, line: Line, piece: Piece | None) -> tuple[Any, dict[str, str]]:
        text = line.data.removesuffix(b"\n").decode("utf-8", "replace")
        record = {**self._record, "source": "stderr" if line.stream == STDERR else "stdout", "log": text}
        if piece is not None:
            record |= {"partial_message": "true", "partial_id": piece.id, "partial_ordinal": str(piece.ordinal)}
            record |= {"partial_last": str(piece.last).lower()}
        seconds, rest = divmod(line.time_ns, SECOND)
        stamp = seconds.to_bytes(4, "big") + rest.to_bytes(4, "big")
        return msgspec.msgpack.Ext(0, stamp) if self._fine else seconds, record

    def _await_ack(self, chunk: str) -> None:
        """Return when the server says that it has ``chunk``; raises ``OSError``."""
        said, deadline = b"", time.monotonic() + ACK_SECONDS
        while True:
            said += self._wire.receive(max(0.01, deadline - time.monotonic()))
            try:
                answer = msgspec.msgpack.decode(said, type=dict[str, str])
            except msgspec.DecodeError:
                if len(said) < DATAGRAM:
                    continue  # the rest of it is on its way
                answer = {}
            if answer.get("ack") == chunk:
                return
            self._wire.close()
            raise ConnectionError(f"fluentd acknowledged {answer}, not {chunk}")

    def close(self) -> None:
        self._wire.close()
