"""Calls to the running daemon from short commands of our own: blocking, over ttrpc (``services.calls``).

Rule: one call after the other, and no gRPC: a command would take longer to import it than to be done, and would have
the daemon load it as well.
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from oci import errors
from protos import ttrpc

PIECE = 1 << 16


class Daemon:
    """A connection to the daemon whose gRPC socket is ``address``; use it with ``with``."""

    def __init__(self, address: str, seconds: float) -> None:
        """``seconds`` is what each answer may take. Raises ``Unavailable`` when nobody listens."""
        self._path = f"{address}.ttrpc"
        self._seconds = seconds
        self._decoder = ttrpc.Decoder()
        self._last = -1
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise errors.Unavailable(f"containerd-py at {self._path} cannot be reached: {error}") from error

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def call(self, service: ServiceDescriptor, method: str, request: Message, namespace: str = "") -> Any:
        """The answer. Raises what the daemon says, ``Unavailable`` when it ends, ``DeadlineExceeded``."""
        self._last += 2
        metadata = {"containerd-namespace": namespace} if namespace else {}
        payload = request.SerializeToString()
        try:
            self._socket.sendall(ttrpc.encode_request(self._last, service.full_name, method, payload, metadata))
            response = self._answer(f"{service.name}/{method}")
            if response.code:
                raise errors.from_code(response.code, response.message)
            return GetMessageClass(service.methods_by_name[method].output_type).FromString(response.payload)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"containerd-py did not answer {service.name}/{method} within {self._seconds:g} s"
            ) from None
        except (OSError, ttrpc.ProtocolError, DecodeError) as error:
            raise errors.Unavailable(f"containerd-py at {self._path}: {service.name}/{method}: {error}") from error

    def _answer(self, what: str) -> ttrpc.Response:
        """The response to the last request; an answer that came too late for an earlier one is passed over."""
        while True:
            data = self._socket.recv(PIECE)
            if not data:
                raise errors.Unavailable(f"containerd-py ended before it answered {what}")
            for frame in self._decoder.feed(data):
                if frame.stream_id == self._last and frame.kind == ttrpc.RESPONSE:
                    return ttrpc.decode_response(frame)
