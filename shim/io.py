"""The stdio of one process: descriptors for it, pumps for us.

Rule: where a client's FIFO or file can be given to the process itself, it is, and nothing is copied. Only the raw log
and terminals have pumps. Whatever a replacement shim needs to go on is listed by ``parked``.

Life cycle: ``ProcessIO.open`` → the runtime launches with ``stdio`` → ``launched(console)`` → … → ``drain`` when the
process has ended → ``finish`` when its exit is on record → ``close``. A replacement begins with ``ProcessIO.restore``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Mapping

from runc_py.runtime import Stdio
from shim import loggers
from shim import stdio as targets
from shim.attachserver import AttachServer
from shim.logfile import LogFile
from shim.loop import Loop
from shim.pumps import ConsolePump, CopyPump, FifoInput, InputSink, LogPump
from shim.stdio import ATTACH, BINARY, FIFO, FILE, RAWLOG, Target, Uris

_STREAMS = (("stdout", 1), ("stderr", 2))


class ProcessIO:
    """See the module. Descriptors in ``stdio`` are the process's; all others are this object's."""

    def __init__(self, loop: Loop, uris: Uris) -> None:
        self._loop = loop
        self.terminal = uris.terminal
        self._attach_path = targets.attach_socket(uris)
        self._stdin, self._stdout = targets.parse(uris.stdin), targets.parse(uris.stdout)
        self._stderr = Target(targets.NULL) if uris.terminal else targets.parse(uris.stderr)
        self.stdio: Stdio | None = None
        self._child_ends: list[int] = []
        self._holders: dict[str, int] = {}
        self._log: LogFile | None = None
        self._log_pipes: dict[str, int] = {}
        self._console_pipe: tuple[int, int] | None = None
        self._pumps: list[LogPump | ConsolePump | CopyPump] = []
        self._console: int | None = None
        self._sink: InputSink | None = None
        self._stdin_pipe: int | None = None
        self._fifo_input: FifoInput | None = None
        self._attach: AttachServer | None = None
        self._attach_listener: int | None = None
        self._stdin_closed: Callable[[], None] | None = None
        self._logger: dict[str, int] = {}

    @classmethod
    def open(cls, loop: Loop, uris: Uris, owner: loggers.Owner) -> ProcessIO:
        """Open everything for a process about to be launched. Raises ``GantryError`` or ``OSError``; leaks nothing."""
        opened = cls(loop, uris)
        try:
            opened._open_log()
            opened._start_logger(owner)
            if opened.terminal:
                opened._open_for_terminal()
            else:
                opened.stdio = Stdio(opened._open_stdin(), *map(opened._open_output, (1, 2)))
        except BaseException:
            opened.close()
            raise
        return opened

    @classmethod
    def restore(cls, loop: Loop, uris: Uris, parked: Mapping[str, int]) -> ProcessIO:
        """Go on with the descriptors of a killed shim; takes over those in ``parked`` that it knows."""
        restored = cls(loop, uris)
        restored._attach_listener = parked.get("attach")
        with contextlib.suppress(FileNotFoundError):
            restored._open_log(make=False)  # a log that was removed meanwhile is not made again
        if "pty" in parked:
            if "pty_read" in parked and "pty_write" in parked:
                restored._console_pipe = (parked["pty_read"], parked["pty_write"])
            restored._reopen_terminal_fifos()
            restored.launched(parked["pty"])
            return restored
        restored._log_pipes = {name: parked[name] for name, _ in _STREAMS if name in parked}
        restored._holders = {name: parked[name] for name in parked if name.startswith("hold_")}
        restored._stdin_pipe = parked.get("stdin")
        restored.launched(None)
        return restored

    @property
    def serves_attach(self) -> bool:
        """Whether there is a socket for clients."""
        return self._attach is not None

    def handed_over(self) -> dict[str, int] | None:
        """What ``restore`` needs in a shim that goes on; ``None`` while there is something under way.

        A terminal with FIFOs is not handed over: its clients would see the end of their FIFOs.
        """
        if self._sink is not None and self._sink.full:
            return None
        if any(isinstance(pump, CopyPump) for pump in self._pumps) or self._fifo_input is not None:
            return None
        held = self.in_use()
        if self._attach is not None:
            listener = self._attach.handed_over()
            if listener is None:
                return None
            held["attach"] = listener
        return held

    def _open_log(self, *, make: bool = True) -> None:
        for target in (self._stdout, self._stderr):
            if target.kind == RAWLOG:
                self._log = LogFile(target.path, make=make)
                return

    def _start_logger(self, owner: loggers.Owner) -> None:
        """One program takes both streams, whichever names it."""
        target = next((target for target in (self._stdout, self._stderr) if target.kind == BINARY), None)
        if target is None:
            return
        ends = loggers.start(target, owner)
        self._logger = {"stdout": ends.stdout, "stderr": ends.stderr}
        self._holders.update(hold_stdout=ends.hold_stdout, hold_stderr=ends.hold_stderr)

    def _open_for_terminal(self) -> None:
        if self._stdout.kind == RAWLOG:
            self._console_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._reopen_terminal_fifos()

    def _reopen_terminal_fifos(self) -> None:
        """With a terminal this side reads and writes the client's FIFOs itself."""
        if self._stdin.kind == FIFO:
            self._holders["in"], self._holders["hold_stdin"] = _pair(targets.open_input(self._stdin.path))
        if self._stdout.kind == FIFO:
            self._holders["out"], self._holders["hold_stdout"] = _pair(targets.open_output(self._stdout.path))
        self._holders = {name: descriptor for name, descriptor in self._holders.items() if descriptor >= 0}

    def _for_child(self, descriptor: int) -> int:
        self._child_ends.append(descriptor)
        return descriptor

    def _open_stdin(self) -> int:
        if self._stdin.kind == FIFO:
            descriptor, holder = targets.open_input(self._stdin.path)
            if holder is not None:
                self._holders["hold_stdin"] = holder
            return self._for_child(descriptor)
        if self._stdin.kind == ATTACH:
            read_end, self._stdin_pipe = os.pipe2(os.O_CLOEXEC)
            return self._for_child(read_end)
        return self._for_child(targets.open_null())

    def _open_output(self, stream: int) -> int:
        name, target = ("stdout", self._stdout) if stream == 1 else ("stderr", self._stderr)
        if target.kind == FIFO:
            descriptor, holder = targets.open_output(target.path)
            if holder is not None:
                self._holders[f"hold_{name}"] = holder
            return self._for_child(descriptor)
        if target.kind == FILE:
            return self._for_child(targets.open_file(target.path))
        if target.kind == BINARY:
            return self._for_child(self._logger.pop(name))
        if target.kind == RAWLOG:
            self._log_pipes[name], write_end = os.pipe2(os.O_CLOEXEC)
            return self._for_child(_unbreakable(write_end))
        return self._for_child(targets.open_null())

    def launched(self, console: int | None) -> None:
        """The process runs: let go of its descriptors and start pumping. Takes over ``console``."""
        self._console = console
        if console is not None:
            self._start_terminal(console)
        else:
            if self._stdin_pipe is not None:
                self._sink = InputSink(self._loop, self._stdin_pipe, is_console=False)
            if self._log is not None:
                for name, stream in _STREAMS:
                    if name in self._log_pipes:
                        pump = LogPump(self._loop, self._log_pipes[name], self._log, stream, self._log_grew)
                        self._pumps.append(pump)
        _close_all([*self._child_ends, *self._logger.values()])
        self._child_ends = []
        self._logger.clear()
        self.stdio = None
        self._start_attach()

    def _start_terminal(self, console: int) -> None:
        self._sink = InputSink(self._loop, console, is_console=True)
        fifo = self._holders.pop("in", None)
        if fifo is not None:
            os.set_blocking(fifo, False)
            self._fifo_input = FifoInput(self._loop, fifo, self._sink)
        if self._stdout.kind == RAWLOG and self._log is not None:
            pipe = self._console_pipe or os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._console_pipe = pipe
            self._pumps.append(ConsolePump(self._loop, console, pipe, self._log, self._log_grew))
            return
        target = self._holders.pop("out", self._logger.pop("stdout", None))
        if target is not None:
            os.set_blocking(target, False)
        elif self._stdout.kind == FILE:
            target = targets.open_file(self._stdout.path)
        self._pumps.append(CopyPump(self._loop, console, target))

    def _start_attach(self) -> None:
        if path := self._attach_path:
            self._attach = AttachServer(
                self._loop,
                path,
                self._log,
                self._sink if self._stdin.kind == ATTACH else None,
                stdin_once=self._stdin.once,
                listener=None if self._attach_listener is None else socket.socket(fileno=self._attach_listener),
            )

    def _log_grew(self) -> None:
        if self._attach is not None:
            self._attach.wake()

    def parked(self) -> dict[str, int]:
        """Names and descriptors that the keeper should hold while the process lives."""
        held = {name: fd for name, fd in self._holders.items() if name.startswith("hold_")}
        if self._console is not None:
            held = {"pty": self._console}
            if self._console_pipe is not None:
                held["pty_read"], held["pty_write"] = self._console_pipe
            return held
        held.update(self._log_pipes)
        if self._stdin_pipe is not None:
            held["stdin"] = self._stdin_pipe
        return held

    def in_use(self) -> dict[str, int]:
        """What of ``parked`` is still open: a stream may have ended before its process."""
        ended = {name for name, pipe in self._log_pipes.items() if self._has_ended(pipe)}
        if self._console is None and self._sink is not None and self._sink.closed:
            ended.add("stdin")
        if self._console is not None and any(pump.closed for pump in self._pumps):
            ended |= {"pty_read", "pty_write"}
        return {name: descriptor for name, descriptor in self.parked().items() if name not in ended}

    def _has_ended(self, pipe: int) -> bool:
        return any(isinstance(pump, LogPump) and pump.pipe == pipe and pump.closed for pump in self._pumps)

    def on_stdin_closed(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the process is to see the end of its stdin: copies elsewhere must be closed then."""
        self._stdin_closed = callback
        if self._sink is not None and self._console is None:
            self._sink.on_room.append(self._sink_changed)

    def _sink_changed(self) -> None:
        if self._sink is not None and self._sink.closed and self._stdin_closed is not None:
            self._stdin_closed()
            self._stdin_closed = None

    def resize(self, width: int, height: int) -> None:
        """Give the terminal ``width`` columns and ``height`` rows; without a terminal nothing happens."""
        if self._console is not None:
            fcntl.ioctl(self._console, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close_stdin(self) -> None:
        """CloseIO: the process sees end of file once what was sent before is read."""
        holder = self._holders.pop("hold_stdin", None)
        if holder is not None:
            os.close(holder)
            if self._stdin_closed is not None:
                self._stdin_closed()
        if self._sink is not None:
            self._sink.end()

    def drain(self) -> None:
        """The process has ended: move its last output, as far as that needs no waiting."""
        for pump in self._pumps:
            pump.drain()

    def finish(self) -> None:
        """The exit is on record: attach clients get their end of file, FIFOs theirs."""
        if self._attach is not None:
            self._attach.end()
        if self._sink is not None:
            self._sink.close()
        _close_all(self._holders.values())
        self._holders.clear()

    def close(self) -> None:
        """Let go of everything; the process's output so far stays where it is."""
        if self._attach is not None:
            self._attach.close()
        if self._fifo_input is not None:
            self._fifo_input.close()
        if self._sink is not None:
            self._sink.close()
        elif self._stdin_pipe is not None:
            _close_all([self._stdin_pipe])
        if self._pumps:
            for pump in self._pumps:
                pump.close()
        else:
            _close_all([*self._log_pipes.values(), *(self._console_pipe or ())])
        _close_all([*self._holders.values(), *self._logger.values(), *self._child_ends])
        self._holders.clear()
        self._logger.clear()
        self._child_ends = []
        if self._console is not None:
            _close_all([self._console])
            self._console = None
        if self._log is not None:
            self._log.close()
            self._log = None


def _unbreakable(write_end: int) -> int:
    """The same end of the pipe, open for reading as well; takes over ``write_end``.

    A process that is a reader of its own output gets no SIGPIPE while shim and keeper are both dead: it waits when the
    pipe is full, and a new shim finds the pipe by /proc/<pid>/fd.
    """
    try:
        return os.open(f"/proc/self/fd/{write_end}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(write_end)


def _pair(opened: targets.Opened) -> tuple[int, int]:
    return opened.descriptor, -1 if opened.holder is None else opened.holder


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
