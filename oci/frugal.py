"""What an idle daemon does without: modules that it may never need, and memory that it needed only to start.

Rule: nobody has to know. A deferred module is imported by an ordinary ``import`` statement and comes into being when
something in it is looked up; ``from module import name`` is such a look-up, and so is a base class. What is deferred is
said once, by the daemon's ``main``, before anything imports it.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands in ``sys.modules`` for a module that is not there yet; who got it keeps a view of the real one."""

    def __init__(self, name: str, before: Callable[[ModuleType], None], after: Callable[[ModuleType], None]) -> None:
        super().__init__(name)
        self.__dict__.update(_lock=threading.Lock(), _before=before, _after=after)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of every module by who looks through them
            raise AttributeError(name)
        value = self.__dict__[name] = getattr(_load(self), name)
        return value


def _load(deferred: _Deferred) -> ModuleType:
    name, state = deferred.__name__, deferred.__dict__
    with state["_lock"]:  # held for no import: the import system has locks of its own, and an order for them
        first = sys.modules.get(name) is deferred
        if first:
            state["_before"](deferred)
            del sys.modules[name]
    module = importlib.import_module(name)
    if first:
        state["_after"](module)
    return module


def _nothing(_: ModuleType) -> None:
    pass


def defer(*names: str) -> None:
    """Import these modules when they are used. One that is there already stays; packages around them are imported.

    ``ssl``: then asyncio is to come by ``import_asyncio``, or it uses ssl at once.
    """
    for name in names:
        if name in sys.modules:
            continue
        hooks = (_tell_asyncio, _finish_asyncio) if name == "ssl" else (_nothing, _nothing)
        sys.modules[name] = deferred = _Deferred(name, *hooks)
        package, _, short = name.rpartition(".")
        if package:  # where ``import package.short`` leaves it
            vars(importlib.import_module(package))[short] = deferred


def import_asyncio() -> None:
    """Import asyncio, without ssl where that is deferred; asyncio does TLS as soon as somebody has used ssl."""
    deferred = sys.modules.get("ssl")
    if "asyncio" in sys.modules or not isinstance(deferred, _Deferred):
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # an import is told to fail so; asyncio takes it for an answer
    try:
        importlib.import_module("asyncio")
    finally:
        sys.modules["ssl"] = deferred


def _tell_asyncio(ssl: ModuleType) -> None:
    """Put ``ssl`` where asyncio noted that there is none: before it is there, so nobody can have a context yet."""
    for name, module in tuple(sys.modules.items()):
        if name.startswith("asyncio.") and vars(module).get("ssl", module) is None:
            vars(module)["ssl"] = ssl


def _finish_asyncio(ssl: ModuleType) -> None:
    """What ``asyncio.sslproto`` makes of ssl when it is imported."""
    if "asyncio.sslproto" in sys.modules:
        vars(sys.modules["asyncio.sslproto"])["SSLAgainErrors"] = (ssl.SSLWantReadError, ssl.SSLSyscallError)


def give_back() -> None:
    """Return free memory to the kernel: what was read and unpacked to import modules leaves holes of some megabytes.

    A few milliseconds; without an effect where the C library has no ``malloc_trim(3)``.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
