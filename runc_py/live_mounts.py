"""Mounts added to and taken from a running container (crun's ``mounts`` command).

Rule: the same operations as at creation, by a child that has joined the container's namespaces; bind sources are opened
before it joins, because they are the host's.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from runc_py import child, messages, namespaces, prepare, rootfs, state, syscalls
from runc_py.errors import InvalidSpec, InvalidState
from runc_py.light import os
from runc_py.messages import Kind
from runc_py.paths import Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from runc_py.operations import Operation
    from runc_py.runtime import Runtime

_NO_FOLLOW = 8


def load_mounts(path: str) -> list[dict[str, Any]]:
    """The mounts of a JSON file, in the form of ``config.json``'s. Raises InvalidSpec."""
    from runc_py.spec import check_mounts

    try:
        with open(path, "rb") as file:
            entries = json.load(file)
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"cannot read {path}: {error}") from error
    if not isinstance(entries, list):
        raise InvalidSpec(f"{path}: must be a list of mounts")
    check_mounts({"mounts": entries})
    return entries


def add_mounts(runtime: Runtime, container_id: str, entries: list[dict[str, Any]]) -> None:
    """Mount ``entries`` in a running container, in order."""
    container = _running(runtime, container_id)
    linux = container.spec.get("linux") or {}
    plan: list[Operation] = [
        rootfs.mount_operation(entry, container.bundle, None, linux.get("mountLabel") or "") for entry in entries
    ]
    spaces = namespaces.Namespaces(container.namespaces)
    prepared = prepare.Prepared(linux, spaces, container.directory)
    try:
        prepared.prepare(plan, binds=True)

        def mount_all() -> None:
            root = Root(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            for operation in plan:
                operation.execute(root)

        _inside(container, mount_all, prepared.fds)
    finally:
        prepared.close()


def remove_mounts(runtime: Runtime, container_id: str, entries: list[dict[str, Any]]) -> None:
    """Unmount the destinations of ``entries``, last first."""
    container = _running(runtime, container_id)
    targets = [os.path.normpath("/" + entry["destination"].lstrip("/")) for entry in reversed(entries)]

    def unmount_all() -> None:
        for target in targets:
            syscalls.umount2(target, syscalls.MNT_DETACH | _NO_FOLLOW)  # "/" is the container's here

    _inside(container, unmount_all, ())


def _running(runtime: Runtime, container_id: str) -> state.ContainerState:
    container = state.load(runtime.root, container_id)
    if container.status() not in ("created", "running"):
        raise InvalidState(f"container {container_id} is not running")
    return container


def _inside(container: state.ContainerState, work: Callable[[], None], keep: tuple[int, ...] | list[int]) -> None:
    """Do ``work`` in a child in the container's user and mount namespaces; its error is raised here."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    target = os.pidfd_open(container.pid)
    flags = sum(namespaces.FLAGS[entry["type"]] for entry in container.namespaces if entry["type"] in ("user", "mount"))
    with ours:
        pid, pidfd = syscalls.clone(0)
        if pid == 0:
            try:
                child.detach("runc-py:[MOUNT]", None, [theirs.fileno(), target, *keep], 0)
                syscalls.setns(target, flags, "namespaces of the container")
                if flags & syscalls.CLONE_NEWUSER:
                    child.become_root_of_namespace()
                work()
                messages.send(theirs, Kind.READY)
            except BaseException as error:
                messages.send_failure(theirs, error)
            os._exit(0)
        theirs.close()
        for fd in (target, pidfd):
            os.close(fd)
        answer = messages.receive(ours)
        os.waitpid(pid, 0)
    if answer.kind != Kind.READY:
        raise messages.failure(answer)
