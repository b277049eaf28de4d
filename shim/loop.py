"""The shim's event loop: epoll, timers and SIGCHLD, in one thread.

Rule: callbacks run one after the other and never wait for a peer. An exception in one is reported and does not end the
loop: a shim that dies takes nothing with it, but a shim that lives is better.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

READ, WRITE, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR

_LONGEST_REST = 600.0

Callback = Callable[[int], None]
"""Called with the epoll events that occurred."""


class _Timer(NamedTuple):
    when: float
    number: int
    callback: Callable[[], None]


class Loop:
    """One epoll set. ``watch`` a descriptor, ``call_later``, then ``run`` until ``stop``."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[_Timer] = []
        self._timer_number = 0
        self._running = False
        self._rest_seconds = self._next_rest = -1.0
        self._rest: Callable[[], None] = self.stop

    def fileno(self) -> int:
        """The epoll set: readable when something that is watched is ready."""
        return self._poll.fileno()

    def watch(self, descriptor: int, events: int, callback: Callback) -> None:
        """Call ``callback`` whenever ``events`` hold on ``descriptor``. Watching again changes both."""
        if descriptor in self._callbacks:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        """Forget ``descriptor``; to be called before it is closed. Unknown ones do not matter."""
        if self._callbacks.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(descriptor)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, about ``seconds`` from now."""
        self._timer_number += 1
        heapq.heappush(self._timers, _Timer(time.monotonic() + seconds, self._timer_number, callback))

    def watch_children(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after a child has changed state (SIGCHLD). Returns what puts an end to that."""
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

        def woken(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(read_end, 4096)
            callback()

        def end() -> None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, before)
            self.unwatch(read_end)
            for descriptor in (read_end, write_end):
                os.close(descriptor)

        self.watch(read_end, READ, woken)
        return end

    def call_at_rest(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` when nothing has happened for ``seconds`` and no timer runs; again after twice as long."""
        self._rest_seconds = self._next_rest = seconds
        self._rest = callback

    def run(self) -> None:
        """Serve until ``stop``."""
        self._running = True
        while self._running:
            ready = self._poll.poll(self._patience())
            if not ready and not self._timers:
                self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
                self._guarded(lambda _events: self._rest(), 0)
                continue
            if ready:
                self._next_rest = self._rest_seconds
            for descriptor, events in ready:
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    self._guarded(callback, events)
            self._run_timers()

    def stop(self) -> None:
        """Make ``run`` return after the present round."""
        self._running = False

    def _patience(self) -> float:
        """Seconds until the next timer, or until this counts as rest; -1 for ever."""
        return max(0.0, self._timers[0].when - time.monotonic()) if self._timers else self._next_rest

    def _run_timers(self) -> None:
        while self._timers and self._timers[0].when <= time.monotonic():
            callback = heapq.heappop(self._timers).callback
            try:
                callback()
            except Exception as error:
                report(f"unexpected error in {getattr(callback, '__qualname__', callback)}", error)

    def _guarded(self, callback: Callback, events: int) -> None:
        try:
            callback(events)
        except Exception as error:
            report(f"unexpected error in {getattr(callback, '__qualname__', callback)}", error)


def report(message: str, error: BaseException | None = None) -> None:
    """One line, and the traceback of ``error``, to the shim's log (its stderr)."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{stamp} {message}\n")
        if error is not None:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
