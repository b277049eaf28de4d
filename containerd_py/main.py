"""``containerd-py``: the supervisor's command line and start-up order.

Rule: zygote and keeper are started (or adopted) before anything heavy is imported (docs/internals.md, "Processes");
that is why this module imports only the standard library and light modules at the top. SIGTERM ends the daemon and
nothing else: containers, shims, zygote and keeper go on, and the next daemon finds them. ``containerd-py shutdown``
ends all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time

from containerd_py.settings import Settings, Tcp
from containerd_py.tasks import helpers
from oci import frugal
from oci.errors import GantryError
from oci.hostpaths import default_paths
from oci.version import __version__

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")
SOCKET_PATH_LIMIT = 100
"""``sun_path`` holds 108 bytes; the longest of our names adds a suffix."""

STOP_SECONDS = 15.0

KEYS = (
    "root",
    "state",
    "grpc.address",
    "grpc.tcp_address",
    "grpc.tcp_tls_cert",
    "grpc.tcp_tls_key",
    "grpc.tcp_tls_ca",
    "debug.level",
    "metrics.address",
    "metrics.grpc_histogram",
)
"""What is read of containerd's configuration file."""

DEFERRED = (
    "ssl",  # with enumerations of all that OpenSSL knows, 1.5 MB
    "hashlib",  # with OpenSSL's libcrypto, 3.5 MB
    "secrets",  # imports hashlib
    "bz2",
    "lzma",
    "email.utils",
    "tempfile",
    "random",
    "google.protobuf.internal.python_message",  # protobuf's messages in Python, where there are none in C: 0.8 MB
    "google.protobuf.text_format",
)
"""What an idle daemon has no need of."""


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


def main() -> None:
    """Entry point of the console script."""
    frugal.defer(*DEFERRED)
    arguments = _parser().parse_args()
    try:
        settings = _settings(arguments)
        if arguments.command == "shutdown":
            sys.exit(shutdown(settings, kill=arguments.kill))
        if arguments.command == "publish":
            from containerd_py.publish import publish

            sys.exit(publish(settings.address, arguments.namespace, arguments.topic, sys.stdin.buffer.read()))
        serve(settings)
    except (StartError, GantryError, OSError) as error:
        sys.exit(f"containerd-py: {error}")


def _parser() -> argparse.ArgumentParser:
    paths = default_paths()
    parser = argparse.ArgumentParser(
        prog="containerd-py", description="Containers, images and tasks over containerd's API."
    )
    add = parser.add_argument
    add("--version", "-v", action="version", version=f"containerd-py {__version__}")
    add("--root", metavar="DIR", help=f"persistent data (default {paths.containerd_root})")
    add("--state", metavar="DIR", help=f"sockets and running tasks (default {paths.containerd_state})")
    add("--address", "-a", metavar="SOCKET", help="gRPC socket (default <state>/containerd.sock)")
    add("--log-level", "-l", choices=LEVELS, help="default info")
    add(
        "--config",
        "-c",
        metavar="FILE",
        help="containerd's configuration file, TOML (root, state, grpc, debug.level, metrics)",
    )
    add("--debug", action="store_const", const="debug", dest="log_level", help="the same as --log-level debug")
    add("--tcp-address", metavar="HOST:PORT", help="serve gRPC on TCP too")
    add("--tls-cert", metavar="FILE", help="our certificate for TCP, PEM")
    add("--tls-key", metavar="FILE", help="its key")
    add("--tls-ca", metavar="FILE", help="authority that signed the clients' certificates: no other client is let in")
    add("--insecure-tcp", action="store_true", help="let anybody in who reaches the port")
    add("--metrics-address", metavar="HOST:PORT", help="serve Prometheus metrics at /v1/metrics")
    add("--insecure-registry", action="append", metavar="HOST[:PORT]", help="speak plain HTTP with this registry")
    add("--registry-mirror", action="append", metavar="URL", help="ask this mirror of Docker Hub first")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="run the daemon (the default)")
    down = commands.add_parser("shutdown", help="end the daemon, and its helpers when no task is left")
    down.add_argument("--kill", action="store_true", help="kill and delete all tasks first")
    publish = commands.add_parser("publish", help="publish an event read from standard input (for shims)")
    publish.add_argument("--topic", required=True)
    publish.add_argument("--namespace", required=True)
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    """Flags over the file over the defaults."""
    file = _read_config(arguments.config)
    paths = default_paths()
    state = os.path.abspath(arguments.state or file.get("state") or paths.containerd_state)
    address = str(arguments.address or file.get("grpc.address") or f"{state}/containerd.sock")
    settings = Settings(
        root=os.path.abspath(arguments.root or file.get("root") or paths.containerd_root),
        state=state,
        address=os.path.abspath(address.removeprefix("unix://")),
        log_level=arguments.log_level or file.get("debug.level") or "info",
        insecure_registries=tuple(arguments.insecure_registry or ()),
        registry_mirrors=tuple(arguments.registry_mirror or ()),
        tcp=Tcp(
            arguments.tcp_address or file.get("grpc.tcp_address", ""),
            arguments.tls_cert or file.get("grpc.tcp_tls_cert", ""),
            arguments.tls_key or file.get("grpc.tcp_tls_key", ""),
            arguments.tls_ca or file.get("grpc.tcp_tls_ca", ""),
            arguments.insecure_tcp,
        ),
        metrics_address=arguments.metrics_address or file.get("metrics.address", ""),
        grpc_histogram=file.get("metrics.grpc_histogram") == "true",
    )
    if settings.tcp.address:
        from containerd_py.tcp import check

        check(settings.tcp)
    for path in (settings.ttrpc_address, f"{settings.state}/s/{'0' * 32}"):
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            raise StartError(f"socket path {path} is longer than {SOCKET_PATH_LIMIT} bytes: choose a shorter --state")
    if settings.log_level not in LEVELS:
        raise StartError(f"log level {settings.log_level!r} is not one of {', '.join(LEVELS)}")
    return settings


def _read_config(path: str | None) -> dict[str, str]:
    """The keys of containerd's file that mean something here. Raises ``StartError``."""
    if path is None:
        return {}
    import tomllib

    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"configuration file {path}: {error}") from error
    found: dict[str, str] = {}
    for name in KEYS:
        value: object = data
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, str) and value:
            found[name] = value
    return found


def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises ``StartError``, ``OSError``."""
    if settings.tcp.address:
        from containerd_py.tcp import check_files

        check_files(settings.tcp)
    frugal.import_asyncio()
    os.makedirs(settings.root, 0o711, exist_ok=True)
    os.makedirs(settings.state, 0o711, exist_ok=True)
    os.makedirs(f"{settings.state}/s", 0o711, exist_ok=True)
    os.makedirs(os.path.dirname(settings.address), 0o711, exist_ok=True)
    locks = (_lock(settings.pidfile), _lock(f"{settings.root}/containerd.lock"))
    os.truncate(locks[0], 0)
    os.pwrite(locks[0], f"{os.getpid()}\n".encode(), 0)
    _refuse_foreign_listener(settings.address)

    from containerd_py.tasks.reaper import become_subreaper

    become_subreaper()
    helpers.ensure(settings.state, settings.helper_log)

    # structlog looks for rich, for a console that this daemon never draws: 7 MiB that nobody needs.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None is how an import is told to fail
    from containerd_py import server  # from here on there are threads: nothing may be forked

    for helper in (helpers.KEEPER, helpers.ZYGOTE):
        try:
            helpers.wait_ready(helper, settings.state, settings.helper_log)
        except TimeoutError as error:
            raise StartError(str(error)) from error
    server.run(settings)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(settings.pidfile)
    for lock in locks:
        os.close(lock)


def _lock(path: str) -> int:
    """Take the lock file for the life of this process. Raises ``StartError`` when another daemon holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StartError(
            f"another containerd-py{f' (pid {holder})' if holder else ''} holds {path}:"
            " use it, end it, or choose another --root and --state"
        ) from None
    return descriptor


def _refuse_foreign_listener(address: str) -> None:
    """A stale socket is removed; one that answers belongs to a containerd that is not ours."""
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(address) == 0:
            raise StartError(f"something answers on {address} already: choose another --address")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)


def shutdown(settings: Settings, *, kill: bool) -> int:
    """End the daemon; with no task left also zygote and keeper. Returns the exit status: 1 when tasks go on."""
    from containerd_py.sandboxes.bundles import SandboxBundles

    sandboxes = SandboxBundles(settings.state)
    if kill and os.path.exists(settings.address):
        from containerd_py.killall import kill_all

        kill_all(settings.address, [(bundle.namespace, bundle.id) for bundle in sandboxes.scan()])
    if not stop_daemon(settings.pidfile):
        sys.stderr.write(f"containerd-py: the daemon did not end within {STOP_SECONDS:g} s\n")
        return 1
    import shutil  # brings compressors along, which the daemon does without

    from containerd_py.tasks.bundle import BundleStore
    from containerd_py.tasks.reaper import ENDED

    going_on = False
    for what, store in (("tasks", BundleStore(settings.state)), ("sandboxes", sandboxes)):
        left = [f"{bundle.namespace}/{bundle.id}" for bundle in store.scan()]
        if left:
            sys.stderr.write(f"containerd-py: {len(left)} {what} go on: {', '.join(left[:8])} (--kill ends them)\n")
            going_on = True
    if going_on:
        return 1
    shutil.rmtree(f"{settings.state}/{ENDED}", ignore_errors=True)
    gone = [helpers.dismiss(helper, settings.state) for helper in (helpers.ZYGOTE, helpers.KEEPER)]
    return 0 if all(gone) else 1


def stop_daemon(pidfile: str) -> bool:
    """SIGTERM the daemon that holds ``pidfile`` and wait for its end. True when none runs afterwards."""
    try:
        descriptor = os.open(pidfile, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        deadline = time.monotonic() + STOP_SECONDS
        if _free(descriptor):
            return True
        pid = int(os.pread(descriptor, 32, 0).strip() or b"0")
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(process, signal.SIGTERM)
                select.select([process], [], [], STOP_SECONDS)
            finally:
                os.close(process)
        while not _free(descriptor):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True
    finally:
        os.close(descriptor)


def _free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main()
