"""Pinned network namespaces: made, found and let go of on threads of their own.

Rule: only a short-lived thread ever changes its namespace; the engine's other threads stay in the one gantryd was
started in (unshare(2), setns(2), namespaces(7): a namespace belongs to a thread). A pin is a bind mount of the
thread's namespace file on ``<directory>/<container id>``, so it lives on without any process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from engine.network.netlink import NETLINK_ROUTE, Netlink
from engine.network.rtnl import LOOPBACK_INDEX, set_up
from oci.errors import FailedPrecondition

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

SYSCTLS = (
    ("net/ipv4/conf/default/arp_notify", b"1"),
    ("net/ipv6/conf/default/disable_ipv6", b"1"),
)
"""Set before any interface is made: new addresses are announced; IPv4-only interfaces get no IPv6 (lo keeps ::1)."""


def _check(result: int, action: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{action}: {os.strerror(number)}")


def on_own_thread(work: Callable[[], T]) -> T:
    """Run ``work`` on a fresh thread and wait for it; its exception is raised here."""
    box: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            box.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return box[0]


async def on_own_thread_async(work: Callable[[], T]) -> T:
    """``on_own_thread`` without blocking the event loop; a cancelled caller does not stop the work."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)  # type: ignore[arg-type]  # without an error there is a value

    def body() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=body, name="netns", daemon=True).start()
    return await done


def _write_sysctl(name: str, value: bytes) -> None:
    descriptor = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value)
    finally:
        os.close(descriptor)


def _write_sysctls() -> None:
    for name, value in SYSCTLS:
        with contextlib.suppress(FileNotFoundError):
            _write_sysctl(name, value)


def create_pin(path: str) -> Netlink:
    """Make a namespace with loopback up and pin it at ``path``; a route socket inside. For a thread that ends after it.

    Raises ``OSError``; nothing is left on failure.
    """
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare a network namespace")
        _write_sysctls()
        netlink = Netlink(NETLINK_ROUTE)
        try:
            netlink.request(set_up(LOOPBACK_INDEX))
            source = b"/proc/thread-self/ns/net"
            _check(_libc.mount(source, os.fsencode(path), None, MS_BIND, None), f"pin a network namespace at {path}")
        except BaseException:
            netlink.close()
            raise
    except BaseException:
        os.unlink(path)
        raise
    return netlink


def remove_pin(path: str) -> None:
    """Unmount and remove a pin. Idempotent. The namespace ends with its last process."""
    while _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
        pass
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOENT):
        raise OSError(number, f"unmount {path}: {os.strerror(number)}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def is_pinned(path: str) -> bool:
    """Whether ``path`` is a mounted namespace and not the empty file under one."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return False


def enter(descriptor: int) -> None:
    """Move the calling thread into a network namespace. Only for a thread that ends right after."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "enter a network namespace")


def inside(path: str, work: Callable[[], T]) -> T:
    """Run ``work`` on a thread inside the namespace pinned at ``path``. Raises ``OSError``."""

    def body() -> T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(descriptor)
        finally:
            os.close(descriptor)
        return work()

    return on_own_thread(body)


def write_sysctls(path: str, values: Iterable[tuple[str, str]]) -> None:
    """Set ``net/…`` sysctls (name with slashes, value) of the namespace pinned at ``path``.

    Raises ``FailedPrecondition`` naming the one that the kernel refuses.
    """

    def work() -> None:
        for name, value in values:
            try:
                _write_sysctl(name, value.encode())
            except OSError as error:
                key = name.replace("/", ".")
                raise FailedPrecondition(f"cannot set {key} to {value} in the container: {error.strerror}") from error

    inside(path, work)


def route_socket(path: str) -> Netlink:
    """A route socket inside the namespace pinned at ``path``. Raises ``OSError``."""
    return inside(path, lambda: Netlink(NETLINK_ROUTE))
