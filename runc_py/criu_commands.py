"""``checkpoint`` and ``restore``: their options, in criu's and runc's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runc_py.commands import check_console, command_parser, send_descriptor, write_pid_file
from runc_py.light import os

if TYPE_CHECKING:
    from runc_py.checkpoint import CriuOptions
    from runc_py.main import Context
    from runc_py.options import Options, Parser


def _criu_parser(name: str, description: str) -> Parser:
    from runc_py.checkpoint import CGROUP_MODES, PASSED_ON

    parser = command_parser(name, description)
    parser.add_argument("--image-path", default="checkpoint", help="directory of the images")
    parser.add_argument("--work-path", default="", help="directory of criu's log and working files")
    parser.add_argument("--manage-cgroups-mode", choices=CGROUP_MODES, default="soft")
    parser.add_argument("--empty-ns", action="append", default=[], help="namespace to make empty, such as network")
    for flag in PASSED_ON:
        parser.add_argument(flag, action="store_true", help="as for criu")
    parser.add_argument("--status-fd", default="", help="as for criu")
    return parser


def _criu_options(context: Context, options: Options, extra: list[str]) -> CriuOptions:
    from runc_py.checkpoint import PASSED_ON, CriuOptions, find_criu

    flags = [flag for flag in PASSED_ON if getattr(options, flag[2:].replace("-", "_"))]
    for name in options.empty_ns:
        flags += ["--empty-ns", {"network": "net"}.get(name, name)]
    if options.status_fd:
        flags += ["--status-fd", options.status_fd]
    work = os.path.abspath(options.work_path) if options.work_path else ""
    images = os.path.abspath(options.image_path)
    return CriuOptions(find_criu(context.criu), images, work, [*flags, *extra], options.manage_cgroups_mode)


def checkpoint(context: Context, arguments: list[str]) -> int:
    """Write a running container to files."""
    from runc_py.checkpoint import checkpoint_container

    parser = _criu_parser("checkpoint", "checkpoint a running container with criu")
    parser.add_argument("--leave-running", action="store_true", help="let it go on")
    parser.add_argument("--pre-dump", action="store_true", help="only its memory, while it goes on")
    parser.add_argument("--parent-path", default="", help="images of a pre-dump, relative to --image-path")
    parser.add_argument("--page-server", default="", metavar="ADDRESS:PORT", help="send memory there")
    parser.add_argument("id", metavar="CONTAINER")
    options = parser.parse_args(arguments)
    extra = ["--prev-images-dir", options.parent_path] if options.parent_path else []
    if options.pre_dump or options.parent_path:
        extra.append("--track-mem")
    if options.page_server:
        address, _, port = options.page_server.rpartition(":")
        extra += ["--page-server", "--address", address, "--port", port]
    runtime = context.runtime()
    criu = _criu_options(context, options, extra)
    keeps = options.leave_running or options.pre_dump
    checkpoint_container(runtime, options.id, criu, leave_running=keeps, pre_dump=options.pre_dump)
    if not keeps:
        runtime.delete(options.id, force=True)
    return 0


def restore(context: Context, arguments: list[str]) -> int:
    """Make a container of a checkpoint and let it go on."""
    from runc_py import foreground
    from runc_py import spec as specs
    from runc_py.checkpoint import LABELS, restore_container

    parser = _criu_parser("restore", "restore a container from a checkpoint with criu")
    parser.add_argument("-b", "--bundle", default=".", help="bundle directory (default: the current one)")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for the container")
    parser.add_argument("--pid-file", default="", help="file to write the process id to")
    parser.add_argument("--console-socket", default="", help="AF_UNIX socket that receives the terminal's master")
    parser.add_argument("--no-subreaper", action="store_true", help="accepted for runc's sake")
    parser.add_argument("--no-pivot", action="store_true", help="accepted for runc's sake")
    for flag in LABELS:
        parser.add_argument(flag, default="", help="as for criu")
    parser.add_argument("id", metavar="CONTAINER")
    options = parser.parse_args(arguments)
    spec = specs.load_spec(options.bundle)
    check_console(spec.get("process") or {}, options.console_socket, detach=options.detach)
    labels = [(flag, getattr(options, flag[2:].replace("-", "_"))) for flag in LABELS]
    criu = _criu_options(context, options, [word for pair in labels if pair[1] for word in pair])
    launched = restore_container(context.runtime(), options.id, options.bundle, spec, criu)
    if options.pid_file:
        write_pid_file(options.pid_file, launched.pid)
    if options.console_socket and launched.console is not None:
        send_descriptor(options.console_socket, launched.console, b"/dev/ptmx")
    if options.detach:
        return 0
    foreground.forward_signals(launched)
    status = foreground.wait(launched)
    context.runtime().delete(options.id, force=True)
    return status
