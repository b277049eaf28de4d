"""The runtime's Python interface: what the command line and the shim call.

Rule: a ``Runtime`` holds no container in memory. Everything about a container is in ``<root>/<id>/``, so any process
may go on where another one was killed. Processes of containers are direct children of the caller, who reaps them.
"""

from __future__ import annotations

from runc_py.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runc_py.waiting import WaitingInit


class Stdio(NamedTuple):
    """Descriptors that become 0, 1 and 2 of a process. They stay open, and the caller's, in the caller."""

    stdin: int
    stdout: int
    stderr: int


class Launched(NamedTuple):
    """A process that was started: ``console`` is the pty's master when ``process.terminal`` asked for one.

    Both descriptors belong to the caller.
    """

    pid: int
    pidfd: int
    console: int | None


class RootfsMount(NamedTuple):
    """A mount that makes up the rootfs, as containerd's snapshotters give it, made in the new mount namespace."""

    type: str
    source: str
    options: tuple[str, ...]


class Runtime:
    """Containers whose state is under ``root``; ``cgroup_driver`` is ``cgroupfs``, ``systemd`` or ``disabled``.

    ``waiting`` is an init for the next container that is made, if it suits.
    """

    def __init__(self, root: str, *, cgroup_driver: str = "cgroupfs", waiting: WaitingInit | None = None) -> None:
        self.root = root
        self.cgroup_driver = cgroup_driver
        self.waiting = waiting

    def create(  # noqa: PLR0913 -- one keyword for each of runc's options
        self,
        container_id: str,
        bundle: str,
        *,
        stdio: Stdio | None = None,
        rootfs: Sequence[RootfsMount] = (),
        no_pivot: bool = False,
        no_new_keyring: bool = False,
        preserve_fds: int = 0,
        console_size: tuple[int, int] | None = None,
        spec: dict[str, Any] | None = None,
        notify_socket: str = "",
    ) -> Launched:
        """Make the container and its init, which waits for ``start``.

        ``stdio`` None means the caller's own descriptors (ignored with a terminal); ``spec`` replaces the bundle's
        ``config.json``; ``console_size`` is (rows, columns); ``notify_socket`` is where the program finds its
        ``NOTIFY_SOCKET`` (see ``notify``). Raises ``ContainerExists``, ``InvalidSpec``,
        ``ProcessFailure`` when the program is not in the rootfs, ``RuntimeFailure`` for everything else; the container
        is gone again after any of them.
        """
        from runc_py.create import create_container
        from runc_py.init import CreateOptions

        keyring = None if no_new_keyring else f"_ses.{container_id}"
        options = CreateOptions(stdio, rootfs, no_pivot, keyring, preserve_fds, console_size, notify_socket)
        return create_container(self, container_id, bundle, options, spec)

    def start(self, container_id: str, *, resume: bool = False) -> None:
        """Let a created container's init execute its program; raises ``ProcessFailure`` when ``execve`` fails.

        ``resume`` carries on where a start may have been killed: one that was whole is no error.
        """
        from runc_py.lifecycle import start_container

        start_container(self, container_id, resume=resume)

    def exec(
        self,
        container_id: str,
        process: dict[str, Any],
        *,
        stdio: Stdio | None = None,
        preserve_fds: int = 0,
        console_size: tuple[int, int] | None = None,
        ignore_paused: bool = False,
        cgroup: str = "",
    ) -> Launched:
        """Run another process in a running container; ``process`` is an OCI process object.

        Returns once the program has been executed. Raises ``ProcessFailure`` when it cannot be.
        """
        from runc_py.execute import execute_process

        return execute_process(
            self,
            container_id,
            process,
            stdio=stdio,
            preserve_fds=preserve_fds,
            console_size=console_size,
            ignore_paused=ignore_paused,
            cgroup=cgroup,
        )

    def add_mounts(self, container_id: str, mounts: Sequence[dict[str, Any]]) -> None:
        """Mount more in a running container; ``mounts`` are objects as in ``config.json``."""
        from runc_py.live_mounts import add_mounts

        add_mounts(self, container_id, [*mounts])

    def remove_mounts(self, container_id: str, mounts: Sequence[dict[str, Any]]) -> None:
        """Unmount the destinations of ``mounts`` in a running container."""
        from runc_py.live_mounts import remove_mounts

        remove_mounts(self, container_id, [*mounts])

    def kill(self, container_id: str, signal: int, *, all: bool = False) -> None:
        """Send ``signal`` to init, or with ``all`` to every process of the container."""
        from runc_py.lifecycle import kill_container

        kill_container(self, container_id, signal, everyone=all)

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Remove a stopped (or created) container: cgroup, state, poststop hooks; ``force`` kills it first.

        With ``force`` a container that does not exist is no error. The caller reaps init, not this method.
        """
        from runc_py.lifecycle import delete_container

        delete_container(self, container_id, force=force)

    def state(self, container_id: str) -> dict[str, Any]:
        """The OCI state object plus runc's ``rootfs``, ``created`` and ``owner``. Status as of now."""
        from runc_py.lifecycle import container_state

        return container_state(self, container_id)

    def list(self) -> list[dict[str, Any]]:
        """``state()`` of every container, sorted by id; unreadable ones are left out."""
        from runc_py.lifecycle import list_containers

        return list_containers(self)

    def pids(self, container_id: str) -> Sequence[int]:
        """Process ids, as the host sees them, of everything in the container."""
        from runc_py.lifecycle import container_pids

        return container_pids(self, container_id)

    def pause(self, container_id: str) -> None:
        """Freeze every process of a running container."""
        from runc_py.lifecycle import pause_container

        pause_container(self, container_id)

    def resume(self, container_id: str) -> None:
        """Thaw a paused container."""
        from runc_py.lifecycle import resume_container

        resume_container(self, container_id)

    def update(self, container_id: str, resources: dict[str, Any], *, rdt: dict[str, Any] | None = None) -> None:
        """Apply ``resources`` (the spec's ``linux.resources``) and ``rdt`` (its ``linux.intelRdt``); the rest stays."""
        from runc_py.lifecycle import update_container

        update_container(self, container_id, resources, rdt or {})

    def stats(self, container_id: str) -> dict[str, Any]:
        """Usage of the container's cgroup (see ``runc_py.cgroups``)."""
        from runc_py.lifecycle import container_stats

        return container_stats(self, container_id)
