"""The event loop of the DNS server: descriptors with callbacks, and timers.

Rule: one thread; a callback never waits. What a callback raises is logged and stops nobody else.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Timer:
    """A call at a time; ``cancel`` makes it not happen."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Runs until ``stop``."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = itertools.count()
        self._running = True

    def watch(self, sock: socket.socket, events: int, callback: Callable[[], None]) -> None:
        """Call back whenever ``sock`` is ready; replaces what was watched before."""
        number = sock.fileno()
        if number in self._callbacks:
            self._poll.modify(number, events)
        else:
            self._poll.register(number, events)
        self._callbacks[number] = callback

    def forget(self, sock: socket.socket) -> None:
        """Close a socket and watch it no more. Idempotent."""
        if sock.fileno() >= 0:
            self.unwatch(sock)
            sock.close()

    def unwatch(self, sock: socket.socket) -> None:
        """Watch a socket no more, for now. Idempotent."""
        if self._callbacks.pop(sock.fileno(), None) is not None:
            self._poll.unregister(sock.fileno())

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._number), timer))
        return timer

    def stop(self) -> None:
        """End ``run`` after this callback."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped."""
        while self._running:
            for number, _ in self._poll.poll(self._pause()):
                # An earlier callback of this round may have closed it.
                callback = self._callbacks.get(number)
                if callback is not None:
                    self._call(callback)
            if self._timers:
                self._fire()

    def _pause(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.callback)

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
