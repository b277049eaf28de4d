"""The one place where whatever fails becomes an error with a status, and where a call's metadata becomes a ``Scope``.

Rule: every servicer class is decorated with ``served``; its methods raise ``oci.errors`` or ``OSError``, what comes out
is a ``GantryError``, and each door says that as its wire does. The numbers of ``oci.errors.Code`` are gRPC's own.
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
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import structlog
from google.protobuf.descriptor import ServiceDescriptor

from containerd_py.interfaces import Scope
from containerd_py.metrics.rpcs import RPCS, Method, method_of
from containerd_py.services.rpcs import SERVICE
from oci.errors import Code, FailedPrecondition, GantryError, InvalidArgument, from_code
from protos.ttrpc import LATER

if TYPE_CHECKING:
    import grpc

C = TypeVar("C", bound=type)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""What servicers know of a call, whichever door it came through."""

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

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
    namespace = header(context, NAMESPACE_HEADER)
    if not namespace:
        raise FailedPrecondition("namespace is required", hint=f"send the {NAMESPACE_HEADER} header")
    return Scope(identifier(namespace, "namespace"), header(context, LEASE_HEADER))


def header(context: Context, name: str) -> str:
    """The last value of a header of the call; "" without one."""
    found = ""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            found = value if isinstance(value, str) else value.decode()
    return found


def later(context: Context) -> bool:
    """Whether the caller does not wait for the disk (``ttrpc.LATER``)."""
    return LATER in (context.invocation_metadata() or ())


def status_of(error: Exception) -> GantryError:
    """``error`` with the status and the text that a client sees."""
    if isinstance(error, GantryError):
        return error
    if isinstance(error, OSError):
        return from_code(int(_ERRNO.get(error.errno or 0, Code.UNKNOWN)), str(error))
    return from_code(Code.INTERNAL, f"{type(error).__name__}: {error}")


def _refused(method: Method, request: Any, error: Exception) -> GantryError:
    """What to raise for ``error``, which is logged."""
    refusal = status_of(error)
    about = {"method": f"{method.service}/{method.name}", "container_id": getattr(request, "container_id", None)}
    if refusal.code in {Code.INTERNAL, Code.UNKNOWN}:
        log.error("call failed", **about, error=str(refusal), exc_info=error)
    else:
        log.debug("call refused", **about, status=refusal.code.name, error=str(refusal))
    return refusal


@contextlib.contextmanager
def _counted(method: Method) -> Iterator[None]:
    """A call in the counters, with how it ended."""
    RPCS.started[method] += 1
    began = time.monotonic()
    code: Code | None = None
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        code = Code.CANCELED
        raise
    except Exception as error:
        code = status_of(error).code
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
        except Exception as error:
            raise _refused(method, request, error) from error

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
        except Exception as error:
            raise _refused(method, request, error) from error

    return counted


def served(service: ServiceDescriptor) -> Callable[[C], C]:
    """Class decorator of a servicer of ``service``: what its methods raise comes out as a ``GantryError``, counted.

    Methods are coroutines or async generators; cancellation by the client passes through untouched.
    """

    def decorate(servicer: C) -> C:
        for one in service.methods:
            call, method = getattr(servicer, one.name), method_of(one)
            RPCS.known(method)
            wrapped = _stream if inspect.isasyncgenfunction(call) else _unary
            setattr(servicer, one.name, wrapped(call, method))
        setattr(servicer, SERVICE, service)
        return servicer

    return decorate
