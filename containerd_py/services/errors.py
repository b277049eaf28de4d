"""The one place where an error becomes a gRPC status, and where a call's metadata becomes a ``Scope``.

Rule: every servicer class is decorated with ``served``; its methods raise ``oci.errors`` (or ``OSError``) and never
call ``context.abort`` themselves. The numbers of ``oci.errors.Code`` are gRPC's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import inspect
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import structlog

from containerd_py.interfaces import Scope
from containerd_py.metrics.rpcs import RPCS, Method, method_of
from oci.errors import Code, FailedPrecondition, GantryError, InvalidArgument
from protos.ttrpc import LATER

C = TypeVar("C", bound=type)
Context = grpc.aio.ServicerContext[Any, Any]

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_ERRNO = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.EEXIST: Code.ALREADY_EXISTS,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENOMEM: Code.RESOURCE_EXHAUSTED,
    errno.ENOTSUP: Code.UNIMPLEMENTED,
}
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_MAX_IDENTIFIER = 76

log = structlog.get_logger()


def identifier(value: str, what: str) -> str:
    """``value`` when it is a containerd identifier (at most 76 of ``[A-Za-z0-9._-]``), else ``InvalidArgument``."""
    if not value:
        raise InvalidArgument(f"{what} must not be empty")
    if len(value) > _MAX_IDENTIFIER:
        raise InvalidArgument(f"{what} {value!r} is longer than {_MAX_IDENTIFIER} characters")
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidArgument(f"{what} {value!r} must match {_IDENTIFIER.pattern}")
    return value


def scope(context: Context) -> Scope:
    """Namespace and lease of a call. Raises ``FailedPrecondition`` without a namespace, as containerd does."""
    namespace = lease = ""
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_HEADER:
            namespace = value if isinstance(value, str) else value.decode()
        elif key == LEASE_HEADER:
            lease = value if isinstance(value, str) else value.decode()
    if not namespace:
        raise FailedPrecondition("namespace is required", hint=f"send the {NAMESPACE_HEADER} header")
    return Scope(identifier(namespace, "namespace"), lease)


def later(context: Context) -> bool:
    """Whether the caller does not wait for the disk (``ttrpc.LATER``)."""
    return LATER in (context.invocation_metadata() or ())


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The status and the text a client sees for ``error``."""
    if isinstance(error, GantryError):
        return _STATUS[int(error.code)], str(error)
    if isinstance(error, OSError):
        return _STATUS[int(_ERRNO.get(error.errno or 0, Code.UNKNOWN))], str(error)
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"


async def _refuse(context: Context, method: Method, request: Any, error: Exception) -> None:
    code, details = status_of(error)
    about = {"method": f"{method.service}/{method.name}", "container_id": getattr(request, "container_id", None)}
    if code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}:
        log.error("call failed", **about, error=details, exc_info=error)
    else:
        log.debug("call refused", **about, status=code.name, error=details)
    await context.abort(code, details)


@contextlib.contextmanager
def _counted(method: Method) -> Iterator[None]:
    """A call in the counters, with how it ended."""
    RPCS.started[method] += 1
    began = time.monotonic()
    code = grpc.StatusCode.OK
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED
        raise
    except Exception as error:
        code, _ = status_of(error)
        raise
    finally:
        RPCS.ended(method, code, time.monotonic() - began)


def _unary(call: Callable[..., Awaitable[Any]], method: Method) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(call)
    async def counted(self: Any, request: Any, context: Context) -> Any:
        try:
            with _counted(method):
                RPCS.received[method] += 1
                answer = await call(self, request, context)
                RPCS.sent[method] += 1
                return answer
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return await _refuse(context, method, request, error)

    return counted


def _stream(call: Callable[..., AsyncGenerator[Any, None]], method: Method) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(call)
    async def counted(self: Any, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            with _counted(method):
                RPCS.received[method] += 1
                async with contextlib.aclosing(call(self, request, context)) as answers:
                    async for answer in answers:
                        RPCS.sent[method] += 1
                        yield answer
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _refuse(context, method, request, error)

    return counted


def served(servicer: C) -> C:
    """Class decorator: errors raised by the RPC methods (capitalised names) reach the client as their status.

    Methods are coroutines or async generators; cancellation by the client passes through untouched.
    """
    for name, method in list(vars(servicer).items()):
        if not name[0].isupper():
            continue
        if inspect.isasyncgenfunction(method):
            setattr(servicer, name, _stream(method, _known(servicer, name)))
        elif inspect.iscoroutinefunction(method):
            setattr(servicer, name, _unary(method, _known(servicer, name)))
    return servicer


def _known(servicer: type, name: str) -> Method:
    method = method_of(servicer, name)
    RPCS.known(method)
    return method
