"""How a failed build is told to a client: a text that docker's users know, and where in the Dockerfile it happened.

Rule: texts come without a status code in front, as BuildKit's do. Details are JSON inside of ``google.rpc.Status``: so
BuildKit's clients decode errors (buildkit ``util/grpcerrors``).
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2

from engine.build.dockerfile.errors import DockerfileError, Lines
from engine.build.running import StepFailed
from engine.build.solver import failed_lines
from oci.errors import GantryError
from protos.containerd import rpc_status_pb2

SOURCE_TYPE = "github.com/moby/buildkit/errdefs.Source+json"
DETAILS_KEY = "grpc-status-details-bin"
CANCELED = "context canceled"


class Failure(NamedTuple):
    """What went wrong; ``source`` is the Dockerfile it happened in, ``lines`` where."""

    text: str
    filename: str = ""
    source: bytes = b""
    lines: Lines | None = None


def text_of(error: BaseException) -> str:
    """``error`` in BuildKit's words."""
    if isinstance(error, StepFailed):
        shown = json.dumps(error.shown, ensure_ascii=False)
        return f"process {shown} did not complete successfully: exit code: {error.exit_status}"
    if isinstance(error, DockerfileError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, GantryError):
        return str(error)
    return str(error) or type(error).__name__


def failure_of(error: BaseException, filename: str = "", source: bytes = b"") -> Failure:
    """``error`` of a build of ``source``."""
    lines = failed_lines(error) if isinstance(error, GantryError) else None
    return Failure(text_of(error), filename, source, lines)


async def abort(context: Any, failure: Failure) -> None:
    """End a call with ``failure``."""
    status = rpc_status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=failure.text)
    if failure.lines is not None:
        status.details.append(any_pb2.Any(type_url=SOURCE_TYPE, value=_source(failure, failure.lines)))
    trailer = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(grpc.StatusCode.UNKNOWN, failure.text, trailer)


def _source(failure: Failure, lines: Lines) -> bytes:
    span = {"start": {"line": lines.first}, "end": {"line": lines.last}}
    info = {"filename": failure.filename, "data": base64.b64encode(failure.source).decode(), "language": "Dockerfile"}
    return json.dumps({"info": info, "ranges": [span]}).encode()
