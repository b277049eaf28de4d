"""An init made before the container that it will be the first process of is asked for.

Rule: it has what nearly every container has, its own pid, IPC and UTS namespaces and its own copy of the memory that an
init writes to, and nothing of any container. A container that asks for something else gets its init by ``clone``. It
ends when the process that made it does.
"""

from __future__ import annotations

import marshal

from runc_py import cgroups, child, init, messages, rootfs, syscalls
from runc_py.light import SOCK_SEQPACKET, TYPE_CHECKING, Socket, os, recv_fds, send_fds, socketpair, suppress
from runc_py.namespaces import Namespaces
from runc_py.runtime import RootfsMount, Stdio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

HAS = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
"""The namespaces it has. A mount namespace is made when its container comes: with the mounts that the host has then."""

_LATER = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET
_LARGEST_TASK = 160_000
"""Bytes; what fits into a socket's buffer as the kernel makes them."""
_DESCRIPTORS = 16


class WaitingInit:
    """The maker's side: ``call`` it when a container comes, then ``give`` it the task.

    Only for containers whose init goes ahead of its cgroups (see ``create``): on v2 an init is born in its cgroup,
    which spares the kernel a move that waits for all processors.
    """

    __slots__ = ("_peer", "pid", "pidfd")

    def __init__(self, *, memory: Sequence[tuple[int, int]] = (), sibling: bool = False) -> None:
        """``memory`` has start and length of what it will write to; a ``sibling`` is a child of this one's parent."""
        self._peer, theirs = socketpair(SOCK_SEQPACKET)
        self.pid, self.pidfd = syscalls.clone(HAS | (syscalls.CLONE_PARENT if sibling else 0))
        if self.pid == 0:
            self._peer.close()
            _wait(theirs, memory)
        theirs.close()

    def call(self, namespaces: Namespaces) -> bool:
        """Have it make the other namespaces of its container; False when it does not suit them, or is gone."""
        flags = namespaces.clone_flags
        if flags & HAS != HAS or flags & ~(HAS | _LATER):
            return False
        try:
            self._peer.send(b"%d" % (flags & _LATER))
        except OSError:
            return False
        return True

    def give(self, task: init.InitTask, bundle: str) -> bool:
        """Hand over what ``init.run_init`` needs; False when it cannot be told, or is gone.

        ``bundle`` is what relative paths of the spec are relative to.
        """
        options, seccomp = task.options, task.seccomp
        if not task.early or task.cgroup is None or task.prepared or task.tuning or options.preserve_fds:
            return False
        data = marshal.dumps(
            {
                "spec": task.spec,
                "bundle": bundle,
                "rootfs": task.rootfs_path,
                "joined": [*task.namespaces.joined],
                "cgroup": task.cgroup.save(),
                "seccomp": seccomp and (seccomp.program, seccomp.flags, seccomp.listener, seccomp.metadata),
                "layers": [(layer.type, layer.source, tuple(layer.options)) for layer in options.layers],
                "options": (options.no_pivot, options.keyring, 0, options.console_size, options.notify_socket),
                "state": task.state,
            }
        )
        if len(data) > _LARGEST_TASK:
            return False
        descriptors = [task.channel.fileno(), task.listener.fileno(), *task.namespaces.joined.values()]
        try:
            send_fds(self._peer, data, [*descriptors, *(options.stdio or ())])
        except OSError:
            return False
        self._peer.close()
        return True

    def dismiss(self) -> None:
        """Let it end, and reap it if it is ours."""
        self._peer.close()
        os.close(self.pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _wait(peer: Socket, memory: Sequence[tuple[int, int]]) -> NoReturn:
    """Be the one that waits, and then the container's init."""
    problem: BaseException | None = None
    try:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.set_process_name("runc-py:[WAIT]")
        for start, length in memory:
            syscalls.populate(start, length)
        flags = peer.recv(16)
        if not flags:
            os._exit(0)
        try:
            syscalls.unshare(int(flags))
        except OSError as error:
            problem = error
        data, descriptors = recv_fds(peer, _LARGEST_TASK, _DESCRIPTORS)
        if not data:
            os._exit(0)
        peer.close()
        task = _task(marshal.loads(data), descriptors)  # noqa: S302 -- what ``give`` wrote
    except BaseException:
        os._exit(1)  # the parent sees its channel close
    if problem is not None:
        messages.send_failure(task.channel, problem)
        os._exit(1)
    init.import_for(task)
    init.run_init(task)


def _task(told: dict[str, Any], descriptors: list[int]) -> init.InitTask:
    channel, listener, *others = descriptors
    spec = told["spec"]
    namespaces = Namespaces((spec.get("linux") or {}).get("namespaces") or [])
    joined = told["joined"]
    namespaces.joined = dict(zip(joined, others, strict=False))
    stdio = others[len(joined) :]
    manager = cgroups.load(told["cgroup"])
    layers = [RootfsMount(*layer) for layer in told["layers"]]
    return init.InitTask(
        spec=spec,
        namespaces=namespaces,
        plan=rootfs.plan_rootfs(spec, told["bundle"], cgroups.shown_in(spec, manager), userns=False),
        rootfs_path=told["rootfs"],
        channel=Socket(fileno=channel),
        listener=Socket(fileno=listener),
        cgroup=manager,
        seccomp=child.SeccompFilter(*told["seccomp"]) if told["seccomp"] else None,
        options=init.CreateOptions(Stdio(*stdio) if stdio else None, layers, *told["options"]),
        state=told["state"],
        early=True,
    )
