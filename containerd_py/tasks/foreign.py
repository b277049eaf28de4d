"""Shims that are not ours: ``io.containerd.NAME.vN`` as the program ``containerd-shim-NAME-vN``.

Rule: everything a program is told and everything it answers follows containerd's shim documentation
(core/runtime/v2/README.md): ``start`` gets the runtime options on standard input, and its standard output is an
address in one of three forms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import sys
from typing import NamedTuple

import msgspec
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from containerd_py.tasks.bundle import Bundle, Endpoint
from containerd_py.tasks.helpers import environment
from oci import errors
from oci.hostpaths import RUNTIME_NAME
from protos.containerd import bootstrap_pb2, shim_v2_pb2

COMPATIBLE_VERSION = "2.0.0"
"""The containerd release whose shim interface this is."""

START_SECONDS = 30.0
DELETE_SECONDS = 10.0
SHIM_BINARY_PATH = "shim-binary-path"
RUNTIME_PREFIX = "io.containerd."
OWN_PROGRAM = (sys.executable, "-P", "-m", "shim.main")
"""The command line of our own shim, for its ``delete`` when no zygote is to be had."""

_log = structlog.get_logger("containerd_py.tasks.foreign")


class Daemon(NamedTuple):
    """What every shim is told about us: socket paths and the program that publishes events."""

    address: str
    ttrpc_address: str
    publish_program: str
    debug: bool


def is_own(runtime: str) -> bool:
    return runtime in ("", RUNTIME_NAME)


def resolve(runtime: str) -> tuple[str, ...]:
    """The command line of ``runtime``: a name of containerd's form, or an absolute path of a shim.

    Raises ``NotFound`` when no such program is installed, ``InvalidArgument`` for another kind of name.
    """
    if is_own(runtime):
        return OWN_PROGRAM
    if runtime.startswith("/"):
        if not os.access(runtime, os.X_OK):
            raise errors.NotFound(f"runtime {runtime}: no such program")
        return (runtime,)
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts) or "/" in runtime:
        raise errors.InvalidArgument(
            f"invalid runtime name {runtime!r}", hint="use io.containerd.NAME.vN or the absolute path of a shim"
        )
    program = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    path = shutil.which(program)
    if path is None:
        raise errors.NotFound(
            f"runtime {runtime}: {program} is not on PATH", hint=f"install the package with {program}"
        )
    return (path,)


async def start(program: tuple[str, ...], bundle: Bundle, options: AnyMessage | None, daemon: Daemon) -> Endpoint:
    """Run ``<shim> start`` and return where the shim listens. Raises ``Internal`` with what the shim wrote."""
    answer = b""
    failure: errors.Internal | None = None
    for data in _start_inputs(bundle, options, daemon):
        try:
            answer = await _run(program, bundle, daemon, "start", data, START_SECONDS)
            break
        except errors.Internal as error:
            failure = failure or error
    else:
        assert failure is not None
        raise failure
    endpoint = parse_endpoint(answer)
    bundle.write("bootstrap.json", msgspec.json.encode(endpoint))
    return endpoint


async def delete(program: tuple[str, ...], bundle: Bundle, daemon: Daemon) -> shim_v2_pb2.DeleteResponse:
    """Run ``<shim> delete``: kills what is left of the container and tells how it ended."""
    answer = await _run(program, bundle, daemon, "delete", b"", DELETE_SECONDS)
    try:
        return shim_v2_pb2.DeleteResponse.FromString(answer)
    except DecodeError:
        raise errors.Internal(f"task {bundle.id}: {program[0]} delete answered no DeleteResponse") from None


def parse_endpoint(answer: bytes) -> Endpoint:
    """The three forms: JSON (2.x), a plain address (1.x), protobuf ``BootstrapResult`` (2.3 and later)."""
    text = answer.strip()
    if text.startswith(b"{"):
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            return _checked(msgspec.json.decode(text, type=Endpoint))
    if text.startswith((b"unix:", b"/", b"vsock:", b"hvsock:")):
        return _checked(Endpoint(2, text.decode(errors="replace")))
    with contextlib.suppress(DecodeError):
        result = bootstrap_pb2.BootstrapResult.FromString(answer)
        if result.address:
            return _checked(Endpoint(result.version or 2, result.address, result.protocol or "ttrpc"))
    raise errors.Internal(f"the shim's start answered no address: {answer[:200]!r}")


def _checked(endpoint: Endpoint) -> Endpoint:
    if endpoint.protocol != "ttrpc" or endpoint.version not in (2, 3) or "vsock" in endpoint.address[:6]:
        raise errors.Unimplemented(
            f"the shim asks for version {endpoint.version} over {endpoint.protocol} at {endpoint.address}",
            hint="containerd-py speaks versions 2 and 3 over ttrpc on unix sockets",
        )
    return endpoint


def _start_inputs(bundle: Bundle, options: AnyMessage | None, daemon: Daemon) -> tuple[bytes, bytes]:
    """What to say to ``start``, in the order to try.

    Up to 2.2 shims read an ``Any`` (the options, or nothing); newer ones read ``BootstrapParams``, check the names in
    it and fail on anything else. No version is told beforehand, so the form that loses nothing goes first.
    """
    params = bootstrap_pb2.BootstrapParams(
        instance_id=bundle.id,
        namespace=bundle.namespace,
        log_level=bootstrap_pb2.LOG_LEVEL_DEBUG if daemon.debug else bootstrap_pb2.LOG_LEVEL_INFO,
        containerd_version=COMPATIBLE_VERSION,
        containerd_ttrpc_address=daemon.ttrpc_address,
        containerd_grpc_address=daemon.address,
        containerd_binary=daemon.publish_program,
    )
    if options is None or not options.type_url:
        return params.SerializeToString(), b""
    params.extensions.add().value.CopyFrom(options)
    return options.SerializeToString(), params.SerializeToString()


async def _run(
    program: tuple[str, ...], bundle: Bundle, daemon: Daemon, action: str, data: bytes, seconds: float
) -> bytes:
    arguments = [*program, "-namespace", bundle.namespace, "-address", daemon.address]
    arguments += ["-publish-binary", daemon.publish_program, "-id", bundle.id]
    arguments += ["-debug"] if daemon.debug else []
    arguments += ["-bundle", bundle.path] if action == "delete" else []
    process = await asyncio.create_subprocess_exec(
        *arguments,
        action,
        cwd=bundle.path if os.path.isdir(bundle.path) else "/",
        env=_environment(bundle, daemon),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, complaint = await asyncio.wait_for(process.communicate(data), seconds)
    except TimeoutError:
        process.kill()
        raise errors.DeadlineExceeded(
            f"task {bundle.id}: {program[0]} {action} did not end within {seconds:g} s"
        ) from None
    if process.returncode:
        said = (complaint or output).decode(errors="replace").strip()
        raise errors.Internal(f"task {bundle.id}: {program[0]} {action} failed: {said or process.returncode}")
    return output


def _environment(bundle: Bundle, daemon: Daemon) -> dict[str, str]:
    return {
        **environment(),
        "TTRPC_ADDRESS": daemon.ttrpc_address,
        "GRPC_ADDRESS": daemon.address,
        "NAMESPACE": bundle.namespace,
        "MAX_SHIM_VERSION": "2",
    }


class ShimLog:
    """The reading end of a foreign shim's ``log`` FIFO; its lines go to our log.

    Opened for reading and writing, so that the FIFO never reports an end of file between two writers.
    """

    def __init__(self, bundle: Bundle) -> None:
        path = f"{bundle.path}/log"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o700)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise errors.FailedPrecondition(f"task {bundle.id}: {path} is not a FIFO")
        self._bundle = bundle
        asyncio.get_running_loop().add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return
        for line in data.decode(errors="replace").splitlines():
            _log.info(line, namespace=self._bundle.namespace, id=self._bundle.id)

    def close(self) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
