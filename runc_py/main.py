"""The ``runc-py`` command: runc's command line, flags, output and exit codes.

Rule: only the parser of the command that was asked for is built. Errors go to stderr and, as one JSON or text line, to
``--log``: that is where containerd and podman look for the message.
"""

from __future__ import annotations

import gc
import sys

from runc_py.errors import RuntimeFailure
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from typing import Any, NoReturn

    from runc_py.runtime import Runtime

VERSION = "0.1.0"
SPEC_VERSION = "1.3.0"
_BUILT_IN = "+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU"
"""In crun's form, which tools and test suites look at."""
COMMANDS = (
    *("checkpoint", "create", "delete", "events", "exec", "features", "kill", "list", "mounts", "pause", "ps"),
    *("restore", "resume", "run", "spec", "start", "state", "update"),
)
_WITH_VALUE = {"--root", "--log", "--log-format", "--log-level", "--criu", "--rootless", "--cgroup-manager"}
_SWITCHES = {"--debug", "--systemd-cgroup", "--version", "-v", "--help", "-h"}
_STARTS_PROCESSES = ("create", "run", "exec", "restore")
_USAGE = f"""usage: runc-py [global options] command [arguments]

commands: {" ".join(COMMANDS)}

global options:
  --root DIR             where container state is kept (default: /run/runc-py, or $XDG_RUNTIME_DIR/runc-py)
  --log FILE             where errors are logged (default: stderr)
  --log-format FORMAT    text or json
  --log-level LEVEL      debug, info, warning or error
  --debug                log more
  --systemd-cgroup       the same as --cgroup-manager=systemd
  --cgroup-manager NAME  cgroupfs, systemd or disabled
  --rootless BOOL        accepted for runc's sake; it is found out
  --version, --help

"runc-py COMMAND --help" lists a command's options."""


class UsageError(RuntimeFailure):
    """The command line is wrong."""


class Context:
    """Global options, and what a command reports through."""

    def __init__(self, options: dict[str, str], command: str) -> None:
        self.command = command
        self.root = options.get("--root") or default_root()
        self.log = options.get("--log") or ""
        self.log_format = options.get("--log-format") or "text"
        self.debug = "--debug" in options or options.get("--log-level") == "debug"
        self.criu = options.get("--criu") or ""
        driver = options.get("--cgroup-manager") or "cgroupfs"
        self.cgroup_driver = "systemd" if "--systemd-cgroup" in options else driver

    def runtime(self) -> Runtime:
        """The runtime that the global options describe."""
        from runc_py import errors
        from runc_py.runtime import Runtime

        errors.warn = lambda text: self.report("warning", text)
        return Runtime(self.root, cgroup_driver=self.cgroup_driver)

    def problem_with_log(self) -> str:
        """Why nothing could be logged as asked for, "" when it can: a command whose errors get lost is not begun."""
        if self.log_format not in ("text", "json"):
            return f'unknown log format "{self.log_format:.60}": there are text and json'
        if self.log:
            try:
                os.close(self._open_log())
            except OSError as error:
                return f"cannot open log {self.log}: {error.strerror}"
        return ""

    def _open_log(self) -> int:
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def report(self, level: str, text: str) -> None:
        """Log one line."""
        line = self._line(level, text)
        if self.log:
            try:
                fd = self._open_log()
            except OSError as error:
                sys.stderr.write(f"cannot open log {self.log}: {error.strerror}\n{line}")
                return
            os.write(fd, line.encode("utf-8", "backslashreplace"))
            os.close(fd)
            if level == "error":
                sys.stderr.write(f"{text}\n")
        else:
            sys.stderr.write(line)

    def _line(self, level: str, text: str) -> str:
        import time

        from runc_py import documents

        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.log_format == "json":
            return documents.dumps({"level": level, "msg": text, "time": moment}) + "\n"
        return f'time="{moment}" level={level} msg={documents.dumps(text)}\n'


def program_name() -> str:
    """What this program is called by: tools that look at a runtime's name see the one they use."""
    name = os.path.basename(sys.argv[0])
    return "runc-py" if name in ("", "main.py", "-c") else name


def default_root() -> str:
    """Where state is kept unless ``--root`` says so: gone after a reboot, like the containers."""
    if os.geteuid() == 0:
        return "/run/runc-py"
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.geteuid()}'}/runc-py"


def split_command_line(arguments: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """(global options, command, its arguments). Raises UsageError."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, separator, value = rest.pop(0).partition("=")
        if name in _SWITCHES:
            if value.lower() not in ("false", "0"):
                options[name] = "true"
        elif name in _WITH_VALUE:
            if not separator:
                if not rest:
                    raise UsageError(f"option {name} needs a value")
                value = rest.pop(0)
            options[name] = value
        else:
            raise UsageError(f"unknown option {name}; see runc-py --help")
    command = rest.pop(0) if rest else ""
    return options, command, rest


def main() -> NoReturn:
    """Entry point of the command. It ends without taking the interpreter apart, which takes longer than a container."""
    gc.set_threshold(100_000)
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1  # whoever reads the output is gone
    if getattr(sys.meta_path[0], "stale", True):
        from runc_py import onefile

        onefile.refresh()
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run one command line; its exit status."""
    try:
        options, command, rest = split_command_line(arguments)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if "--version" in options or "-v" in options:
        return _print_version()
    if not command or command in ("help", "h") or "--help" in options or "-h" in options:
        sys.stdout.write(f"{_USAGE}\n")
        return 0
    context = Context(options, command)
    if problem := context.problem_with_log():
        sys.stderr.write(f"{problem}\n")
        return 1
    if command not in COMMANDS:
        context.report("error", f'no such command: "{command}"; there are {", ".join(COMMANDS)}')
        return 1
    return _dispatch(context, command, rest)


def _dispatch(context: Context, command: str, rest: list[str]) -> int:
    try:
        if command in _STARTS_PROCESSES and not {"--help", "-h"} & set(rest[:1]):
            from runc_py.seal import ensure_sealed

            ensure_sealed()
        from runc_py import commands

        handler: Any = getattr(commands, f"command_{command}")
        status: int = handler(context, rest)
        return status
    except (RuntimeFailure, OSError) as error:
        context.report("error", f"{_PREFIX.get(command, '')}{error}")
        return 255 if command == "exec" else 1


_PREFIX = {"create": "runc-py create failed: ", "run": "runc-py run failed: ", "exec": "exec failed: "}


def _print_version() -> int:
    python = sys.version.split()[0]
    sys.stdout.write(f"{program_name()} version {VERSION}\nspec: {SPEC_VERSION}\npython: {python}\n{_BUILT_IN}\n")
    return 0


if __name__ == "__main__":
    main()
