"""``gantryd``: read the configuration, start containerd-py, then import the engine while it comes up.

Rule: nothing heavy is imported before containerd-py is started, so that the two starts overlap; and nothing of ours
before it is said what is deferred.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import TYPE_CHECKING

from oci import frugal, trace
from oci.errors import AlreadyExists, GantryError
from oci.version import __version__

if TYPE_CHECKING:
    from engine.app import App
    from engine.config import Config
    from engine.supervise import Supervisor

DEFERRED = (
    "ssl",  # with enumerations of all that OpenSSL knows, 1.5 MB
    "hashlib",  # with OpenSSL's libcrypto, 3.5 MB
    "secrets",  # imports hashlib
    "bz2",
    "lzma",
    "zstandard",
    "isal.isal_zlib",
    "email.utils",
    "tempfile",
    "random",
    "google.protobuf.internal.python_message",  # protobuf's messages in Python, where there are none in C: 0.8 MB
    "google.protobuf.text_format",
)
"""What an idle engine has no need of."""


def lock_pidfile(path: str) -> int:
    """Hold ``path`` for this process; raises ``AlreadyExists`` naming the engine that holds it.

    The lock, not the file's presence, tells whether an engine runs: it ends with the process however that ends.
    """
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode().strip() or "unknown"
        os.close(fd)
        raise AlreadyExists(
            f"an engine already runs here with pid {holder} ({path})", hint="use it, or give another --exec-root"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def configure_log(level: str) -> None:
    """structlog to stderr, one line per event."""
    import logging

    # structlog looks for rich, for a console that this daemon never draws: 7 MiB that nobody needs.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None is how an import is told to fail
    import structlog

    number = {"warn": logging.WARNING, "fatal": logging.CRITICAL}.get(level) or getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def serve(config: Config, supervisor: Supervisor | None, argv: list[str]) -> None:
    """Run the engine until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
    import asyncio
    import signal

    import structlog

    from engine.app import App
    from engine.config import load, reloaded

    if trace.directory:
        from engine import traced

        traced.follow()
    app: App = App(config, supervisor)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)

    def reload() -> None:
        try:
            changed = reloaded(app.config, load(argv))
        except GantryError as error:
            structlog.get_logger().error("the configuration stays as it is", error=str(error))
            return
        configure_log(changed.log_level)
        app.reload(changed)

    loop.add_signal_handler(signal.SIGHUP, reload)
    await app.run()


def run(argv: list[str]) -> None:
    """Everything of ``main`` but the turning of errors into an exit status."""
    if "-v" in argv or "--version" in argv:
        sys.stdout.write(f"Gantry version {__version__}\n")
        return
    frugal.defer(*DEFERRED)
    from engine.config import load, refuse_plain_tcp, registry_flags
    from engine.supervise import Supervisor

    config = load(argv)
    for host in config.hosts:
        refuse_plain_tcp(host, config)
    paths = config.paths
    os.umask(0o022)
    os.makedirs(paths.data_root, mode=0o711, exist_ok=True)
    os.makedirs(paths.exec_root, mode=0o711, exist_ok=True)
    lock = lock_pidfile(config.pidfile)
    supervisor = None
    if not config.containerd:
        supervisor = Supervisor(paths, log_level=config.log_level, registry=registry_flags(config))
        supervisor.ensure()
    frugal.import_asyncio()
    import asyncio

    configure_log(config.log_level)
    try:
        asyncio.run(serve(config, supervisor, argv))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(config.pidfile)
        os.close(lock)


def main() -> None:
    """Console script ``gantryd``."""
    try:
        run(sys.argv[1:])
    except GantryError as error:
        sys.stderr.write(f"gantryd: {error}\n")
        sys.exit(1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(f"gantryd: cannot start:{where} {error.strerror or error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
