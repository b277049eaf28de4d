"""The commands of ``runc-py``: options in, calls of ``Runtime``, output.

Rule: one function a command, named after it; what more than one needs is in ``foreground`` and below.
"""

from __future__ import annotations

import sys

from runc_py import documents, light
from runc_py.errors import InvalidSpec, InvalidState, RuntimeFailure
from runc_py.light import TYPE_CHECKING, os, signal
from runc_py.options import REMAINDER, Options, Parser

if TYPE_CHECKING:
    from typing import Any

    from runc_py.main import Context
    from runc_py.notify import Relay
    from runc_py.runtime import Launched, Runtime


def command_parser(name: str, description: str, usage: str = "CONTAINER") -> Parser:
    """A command's parser; the usage line names the program as it was called."""
    from runc_py.main import program_name

    program = program_name()
    return Parser(f"{program} {name}", f"{program} [OPTION...] {name} {usage}".rstrip(), description)


def _add_process_options(parser: Parser) -> None:
    parser.add_argument("--console-socket", default="", help="AF_UNIX socket that receives the terminal's master")
    parser.add_argument("--pidfd-socket", default="", help="AF_UNIX socket that receives the process's pidfd")
    parser.add_argument("--pid-file", default="", help="file to write the process id to")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="pass N descriptors from 3 on")


def _add_create_options(parser: Parser) -> None:
    parser.add_argument("-b", "--bundle", default=".", help="bundle directory (default: the current one)")
    parser.add_argument("-f", "--config", default="", help="config file other than the bundle's config.json")
    parser.add_argument("--no-pivot", action="store_true", help="move the root mount instead of pivot_root")
    parser.add_argument("--no-new-keyring", action="store_true", help="keep the caller's session keyring")
    _add_process_options(parser)
    parser.add_argument("id", metavar="CONTAINER")


def command_create(context: Context, arguments: list[str]) -> int:
    """Make a container that waits for ``start``."""
    parser = command_parser("create", "create a container")
    _add_create_options(parser)
    options = parser.parse_args(arguments)
    spec, terminal = _spec_of(options, detach=True)
    launched = _create(context, options, spec)
    _hand_over(context, options, launched, terminal=terminal)
    return 0


def command_run(context: Context, arguments: list[str]) -> int:
    """Create, start, wait and delete."""
    parser = command_parser("run", "create and run a container")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for the container")
    parser.add_argument("--keep", action="store_true", help="do not delete the container after it exits")
    parser.add_argument("--no-subreaper", action="store_true", help="do not adopt the container's orphans")
    _add_create_options(parser)
    options = parser.parse_args(arguments)
    spec, terminal = _spec_of(options, detach=options.detach)
    launched = _create(context, options, spec)
    runtime = context.runtime()
    try:
        _hand_over(context, options, launched, terminal=terminal)
        from runc_py import foreground

        relay = _relay(context, options.id)
        if not options.detach:
            foreground.forward_signals(launched)
        runtime.start(options.id)
        if options.detach:
            if relay is not None:
                relay.wait(launched.pidfd, launched.pid)
            return 0
        status = foreground.wait(launched, relay)
    except BaseException:
        runtime.delete(options.id, force=True)
        raise
    if not options.keep:
        runtime.delete(options.id, force=True)
    return status


def _spec_of(options: Options, *, detach: bool) -> tuple[dict[str, Any], bool]:
    """The spec as it is written, which ``create`` checks, and whether it wants a terminal."""
    from runc_py import spec as specs

    directory, name = os.path.split(os.path.abspath(options.config)) if options.config else (options.bundle, "")
    spec = specs.read_spec(directory, name or "config.json")
    process = spec.get("process")
    if not process or not isinstance(process, dict):
        raise InvalidSpec("process: must be there to create a container")
    terminal = check_console(process, options.console_socket, detach=detach)
    if "LISTEN_FDS" in os.environ:
        specs.validate_spec(spec)  # which ``create`` does, too
        _pass_listening_sockets(options, process)
    return spec, terminal


def _pass_listening_sockets(options: Options, process: dict[str, Any]) -> None:
    """Socket activation (sd_listen_fds(3)): the sockets this command was given are the container's, whose pid is 1."""
    count = os.environ.get("LISTEN_FDS", "")
    if _is_number(count) and int(count) > 0:
        options.preserve_fds += int(count)
        names = [f"LISTEN_FDNAMES={os.environ['LISTEN_FDNAMES']}"] if "LISTEN_FDNAMES" in os.environ else []
        process["env"] = [*(process.get("env") or []), f"LISTEN_FDS={count}", "LISTEN_PID=1", *names]


def _create(context: Context, options: Options, spec: dict[str, Any]) -> Launched:
    if context.debug:
        from runc_py.spec import validate_spec

        validate_spec(spec)
        _log_plan(context, spec, options.bundle)
    return context.runtime().create(
        options.id,
        options.bundle,
        no_pivot=options.no_pivot,
        no_new_keyring=options.no_new_keyring,
        preserve_fds=options.preserve_fds,
        spec=spec,
        notify_socket=notify_path(),
    )


def notify_path() -> str:
    """Where the service manager listens, "" without one."""
    return os.environ["NOTIFY_SOCKET"] if os.environ.get("NOTIFY_SOCKET", "").startswith("/") else ""


def _relay(context: Context, container_id: str) -> Relay | None:
    """What passes on that the container is ready, if this command is a service's."""
    from runc_py import state

    directory = f"{os.path.abspath(context.root)}/{state.checked_id(container_id)}"
    if not notify_path() or not os.path.isdir(f"{directory}/notify"):
        return None
    from runc_py.notify import Relay

    return Relay(directory, notify_path())


def _log_plan(context: Context, spec: dict[str, Any], bundle: str) -> None:
    from runc_py.cgroups import ContainerMounts
    from runc_py.rootfs import plan_rootfs

    plan = plan_rootfs(spec, os.path.abspath(bundle), ContainerMounts((), ()), False)
    for operation in (*plan.setup, *plan.finish):
        context.report("debug", operation.describe())


def check_console(process: dict[str, Any], console_socket: str, *, detach: bool) -> bool:
    terminal = bool(process.get("terminal"))
    if detach and terminal and not console_socket:
        raise InvalidState(
            "cannot allocate tty if runc-py will detach without setting console socket (use --console-socket)"
        )
    if console_socket and not (detach and terminal):
        raise InvalidState("cannot use console socket if runc-py will not detach or allocate tty")
    return terminal


def _hand_over(context: Context, options: Options, launched: Launched, *, terminal: bool) -> None:
    """Give pid, pidfd and terminal to those who asked for them; end the process when that fails."""
    try:
        if terminal and options.console_socket and launched.console is not None:
            send_descriptor(options.console_socket, launched.console, b"/dev/ptmx")
        if options.pidfd_socket:
            send_descriptor(options.pidfd_socket, launched.pidfd, b"pidfd")
        if options.pid_file:
            write_pid_file(options.pid_file, launched.pid)
    except OSError as error:
        if context.command == "exec":
            os.kill(launched.pid, 9)
        else:
            context.runtime().delete(options.id, force=True)
        raise RuntimeFailure(f"cannot hand over the process: {error}") from error


def send_descriptor(path: str, fd: int, name: bytes) -> None:
    with light.open_socket(light.AF_UNIX, light.SOCK_STREAM) as peer:
        peer.connect(path)
        light.send_fds(peer, name, [fd])


def write_pid_file(path: str, pid: int) -> None:
    directory, name = os.path.split(os.path.abspath(path))
    temporary = f"{directory}/.{name}"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(str(pid))
    os.rename(temporary, path)


def command_start(context: Context, arguments: list[str]) -> int:
    """Start a created container."""
    parser = command_parser("start", "execute the program of a created container")
    parser.add_argument("id", metavar="CONTAINER")
    container_id = parser.parse_args(arguments).id
    runtime = context.runtime()
    relay = _relay(context, container_id)
    if relay is None:
        runtime.start(container_id)
        return 0
    pid = int(runtime.state(container_id)["pid"])
    pidfd = os.pidfd_open(pid) if pid else -1
    runtime.start(container_id)
    relay.wait(pidfd, pid)
    return 0


def command_exec(context: Context, arguments: list[str]) -> int:
    """Run another process in a container."""
    parser = command_parser("exec", "execute a new process in a running container", "CONTAINER cmd")
    parser.add_argument("--cwd", default="", help="working directory")
    parser.add_argument("-e", "--env", action="append", default=[], help="NAME=VALUE, may be repeated")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-u", "--user", default="", help="UID[:GID]")
    parser.add_argument("-g", "--additional-gids", action="append", type=int, default=[])
    parser.add_argument("-p", "--process", default="", help="file with an OCI process object")
    parser.add_argument("-d", "--detach", action="store_true")
    parser.add_argument("--process-label", default="")
    parser.add_argument("--apparmor", default="")
    parser.add_argument("--no-new-privs", action="store_true", default=None)
    parser.add_argument("-c", "--cap", action="append", default=[])
    parser.add_argument("--cgroup", default="")
    parser.add_argument("--ignore-paused", action="store_true")
    _add_process_options(parser)
    parser.add_argument("id", metavar="CONTAINER")
    parser.add_argument("args", nargs=REMAINDER, metavar="COMMAND")
    options = parser.parse_args(arguments)
    runtime = context.runtime()
    process = _process_of(options, runtime.root)
    terminal = check_console(process, options.console_socket, detach=options.detach)
    launched = runtime.exec(
        options.id,
        process,
        preserve_fds=options.preserve_fds,
        ignore_paused=options.ignore_paused,
        cgroup=options.cgroup,
    )
    _hand_over(context, options, launched, terminal=terminal)
    if options.detach:
        return 0
    from runc_py import foreground

    foreground.forward_signals(launched)
    return foreground.wait(launched)


def _process_of(options: Options, root: str) -> dict[str, Any]:
    """The process object: a file's, or the container's own with what the options change."""
    if options.process:
        try:
            with open(options.process, "rb") as file:
                loaded: dict[str, Any] = documents.loads(file.read())
        except (OSError, ValueError) as error:
            raise InvalidSpec(f"cannot read {options.process}: {error}") from error
        return loaded
    if options.args[:1] == ["--"]:
        options.args.pop(0)
    if not options.args:
        raise InvalidSpec("process args cannot be empty")
    from runc_py import state

    process: dict[str, Any] = dict(state.load(root, options.id).process)
    process.update(args=options.args, terminal=options.tty, env=[*(process.get("env") or []), *options.env])
    process.pop("consoleSize", None)
    for key, value in (
        ("cwd", options.cwd),
        ("apparmorProfile", options.apparmor),
        ("selinuxLabel", options.process_label),
    ):
        if value:
            process[key] = value
    if options.no_new_privs is not None:
        process["noNewPrivileges"] = options.no_new_privs
    if options.cap:
        from runc_py.capabilities import NUMBERS

        if unknown := [name for name in options.cap if name.upper() not in NUMBERS]:
            raise InvalidSpec(f"--cap {unknown[0]}: unknown capability; names are as in capabilities(7): CAP_NET_ADMIN")
        sets = dict(process.get("capabilities") or {})
        for name in ("bounding", "effective", "permitted"):
            sets[name] = [*(sets.get(name) or []), *options.cap]
        process["capabilities"] = sets
    if options.user or options.additional_gids:
        process["user"] = _user_of(options, process.get("user") or {})
    return process


def _user_of(options: Options, own: dict[str, Any]) -> dict[str, Any]:
    user = dict(own)
    if options.user:
        uid, separator, gid = options.user.partition(":")
        # Digits only: a number parser that is more generous has turned odd strings into root (CVE-2026-30892).
        if not _is_number(uid) or (separator and not _is_number(gid)):
            raise InvalidSpec(f'--user "{options.user}": must be UID or UID:GID, in digits')
        user = {"uid": int(uid), "gid": int(gid) if separator else int(own.get("gid") or 0)}
    if options.additional_gids:
        user["additionalGids"] = [*(own.get("additionalGids") or []), *options.additional_gids]
    return user


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def command_state(context: Context, arguments: list[str]) -> int:
    """Print a container's state."""
    parser = command_parser("state", "print the state of a container as JSON")
    parser.add_argument("id", metavar="CONTAINER")
    _print_json(context.runtime().state(parser.parse_args(arguments).id))
    return 0


def command_kill(context: Context, arguments: list[str]) -> int:
    """Send a signal."""
    parser = command_parser("kill", "send a signal (default: TERM) to a container's init", "CONTAINER [SIGNAL]")
    parser.add_argument("-a", "--all", action="store_true", help="to every process of the container")
    parser.add_argument("id", metavar="CONTAINER")
    parser.add_argument("signal", nargs="?", default="TERM", metavar="SIGNAL")
    options = parser.parse_args(arguments)
    context.runtime().kill(options.id, parse_signal(options.signal), all=options.all)
    return 0


def parse_signal(text: str) -> int:
    """A signal by number or by name, with or without ``SIG``."""
    if _is_number(text):
        return int(text)
    name = text.upper().removeprefix("SIG")
    number = getattr(signal, f"SIG{name}", None)
    if not isinstance(number, int) or name.startswith("_"):  # SIG_DFL and its like are no signals
        raise InvalidSpec(f'unknown signal "{text}"')
    return int(number)


def command_delete(context: Context, arguments: list[str]) -> int:
    """Remove a container."""
    parser = command_parser("delete", "delete a stopped container")
    parser.add_argument("-f", "--force", action="store_true", help="kill it first when it runs")
    parser.add_argument("--regex", action="store_true", help="CONTAINER is a regular expression: delete all that match")
    parser.add_argument("id", metavar="CONTAINER")
    options = parser.parse_args(arguments)
    runtime = context.runtime()
    for container_id in _matching(runtime, options.id) if options.regex else [options.id]:
        runtime.delete(container_id, force=options.force)
    return 0


def _matching(runtime: Runtime, pattern: str) -> list[str]:
    import re

    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InvalidSpec(f'"{pattern}" is not a regular expression: {error}') from error
    return [entry["id"] for entry in runtime.list() if expression.search(entry["id"])]


def command_mounts(context: Context, arguments: list[str]) -> int:
    """Add mounts to a running container, or remove them."""
    from runc_py.live_mounts import load_mounts

    parser = command_parser("mounts", "add or remove mounts of a running container", "[add|remove] CONTAINER FILE")
    parser.add_argument("action", choices=("add", "remove"))
    parser.add_argument("id", metavar="CONTAINER")
    parser.add_argument("file", metavar="FILE", help="JSON list of mounts as in config.json")
    options = parser.parse_args(arguments)
    entries = load_mounts(options.file)
    runtime = context.runtime()
    if options.action == "add":
        runtime.add_mounts(options.id, entries)
    else:
        runtime.remove_mounts(options.id, entries)
    return 0


def command_list(context: Context, arguments: list[str]) -> int:
    """Print all containers."""
    parser = command_parser("list", "list containers", "")
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("-q", "--quiet", action="store_true", help="only ids")
    options = parser.parse_args(arguments)
    containers = context.runtime().list()
    if options.quiet:
        sys.stdout.write("".join(f"{entry['id']}\n" for entry in containers))
    elif options.format == "json":
        sys.stdout.write(f"{documents.dumps(containers)}\n")
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        rows += [tuple(str(entry[key.lower()]) for key in rows[0]) for entry in containers]  # type: ignore[misc] # six wide
        _print_table(rows)
    return 0


def _print_table(rows: list[Any]) -> None:
    widths = [max(12, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def command_ps(context: Context, arguments: list[str]) -> int:
    """Print a container's processes."""
    parser = command_parser("ps", "list the processes of a container", "CONTAINER [ps option...]")
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("id", metavar="CONTAINER")
    parser.add_argument("options", nargs=REMAINDER, metavar="ps option")
    options = parser.parse_args(arguments)
    pids = list(context.runtime().pids(options.id))
    if options.format == "json":
        sys.stdout.write(f"{documents.dumps(pids)}\n")
        return 0
    import subprocess

    done = subprocess.run(["ps", *(options.options or ["-ef"])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeFailure(f"ps failed: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    titles = lines[0].split()
    if "PID" not in titles:
        raise RuntimeFailure("couldn't find PID field in ps output")
    column, wanted = titles.index("PID"), set(map(str, pids))
    chosen = [line for line in lines[1:] if line.split()[column : column + 1] and line.split()[column] in wanted]
    sys.stdout.write("".join(f"{line}\n" for line in [lines[0], *chosen]))
    return 0


def command_pause(context: Context, arguments: list[str]) -> int:
    """Freeze a container."""
    parser = command_parser("pause", "suspend all processes of a container")
    parser.add_argument("id", metavar="CONTAINER")
    context.runtime().pause(parser.parse_args(arguments).id)
    return 0


def command_resume(context: Context, arguments: list[str]) -> int:
    """Thaw a container."""
    parser = command_parser("resume", "resume a paused container")
    parser.add_argument("id", metavar="CONTAINER")
    context.runtime().resume(parser.parse_args(arguments).id)
    return 0


def command_update(context: Context, arguments: list[str]) -> int:
    """Change a container's limits."""
    from runc_py.update import rdt_of, resources_of, update_parser

    options = update_parser().parse_args(arguments)
    context.runtime().update(options.id, resources_of(options), rdt=rdt_of(options))
    return 0


def command_events(context: Context, arguments: list[str]) -> int:
    """Print a container's statistics, once or until it ends, and each time the kernel kills for want of memory."""
    from runc_py.events import parse_duration, watch

    parser = command_parser("events", "print statistics and out-of-memory events of a container")
    parser.add_argument("--interval", default="5s", help="time between statistics, such as 500ms, 5s or 1m")
    parser.add_argument("--stats", action="store_true", help="print the statistics once")
    parser.add_argument("id", metavar="CONTAINER")
    options = parser.parse_args(arguments)
    runtime = context.runtime()
    if options.stats:
        _print_event("stats", options.id, runtime.stats(options.id))
        return 0
    for kind, data in watch(runtime, options.id, parse_duration(options.interval)):
        _print_event(kind, options.id, data)
    return 0


def _print_event(kind: str, container_id: str, data: Any) -> None:
    event = {"type": kind, "id": container_id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(documents.dumps(event) + "\n")
    sys.stdout.flush()


def command_spec(_context: Context, arguments: list[str]) -> int:
    """Write a new config.json."""
    from runc_py.template import default_spec

    parser = command_parser("spec", "write a new config.json", "")
    parser.add_argument("-b", "--bundle", default=".", help="directory to write it to")
    parser.add_argument("--rootless", action="store_true", help="for an ordinary user")
    options = parser.parse_args(arguments)
    path = os.path.join(options.bundle, "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            text = documents.dumps_indented(default_spec(rootless=options.rootless), "\t")
            file.write(f"{text}\n")
    except FileExistsError:
        raise InvalidState("file config.json exists. Remove it first") from None
    return 0


def command_features(_context: Context, arguments: list[str]) -> int:
    """Print what this runtime can do."""
    from runc_py.features import supported_features

    command_parser("features", "print the supported features as JSON", "").parse_args(arguments)
    _print_json(supported_features())
    return 0


def command_checkpoint(context: Context, arguments: list[str]) -> int:
    """Write a running container to files."""
    from runc_py.criu_commands import checkpoint

    return checkpoint(context, arguments)


def command_restore(context: Context, arguments: list[str]) -> int:
    """Make a container of a checkpoint and let it go on."""
    from runc_py.criu_commands import restore

    return restore(context, arguments)


def _print_json(document: Any) -> None:
    sys.stdout.write(documents.dumps_indented(document) + "\n")
