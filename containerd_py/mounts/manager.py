"""The activations: lists of mounts that were made under a name, until somebody takes them back.

Rule: a row is there before the first mount is, and goes after the last one went, so that whatever a kill leaves behind
is found by it. An activation is whole, or it is undone: by the call itself, by the next start, by the collection. Those
that nothing refers to (a lease, a live object by the label ``gc.bref``) are garbage, as everything is.

Mount points are ``<targets>/<id>/<place>``, a directory or, for a loop device, a symbolic link to it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence

import structlog

from containerd_py import filters as filter_language
from containerd_py.interfaces import Scope
from containerd_py.metadata.database import Database, pack_labels, unpack_labels
from containerd_py.metadata.labels import check_labels, masked
from containerd_py.mounts import files, kernel
from containerd_py.mounts.plan import Plan, Step, fill_in, plan
from oci import errors
from protos.containerd.types_pb2 import ActivationInfo, ActiveMount, Mount

DIRECTORY = "io.containerd.mount-manager.v1.bolt"
MAKING, WHOLE, DOOMED = range(3)
"""States of a row. Clients see those that are whole."""

_log = structlog.get_logger("containerd_py.mounts.manager")


class MountManager:
    """Activations by (namespace, name). All methods may block; they can be called from any thread."""

    def __init__(self, database: Database, targets: str, roots: Sequence[str]) -> None:
        """``targets`` is where mount points are made; below ``roots`` transforms may make files too."""
        self._database = database
        self._targets = targets
        self._roots = (targets, *roots)
        self._lock = threading.RLock()
        os.makedirs(targets, 0o700, exist_ok=True)

    def activate(
        self, scope: Scope, name: str, mounts: Sequence[Mount], labels: Mapping[str, str], *, temporary: bool = False
    ) -> ActivationInfo:
        """Mount what needs the manager; the rest is told as ``system``.

        Raises ``AlreadyExists``, ``InvalidArgument`` (a mount that does not work: nothing stays), ``Unimplemented``
        when nothing of it needs the manager.
        """
        if not name:
            raise errors.InvalidArgument("an activation needs a name")
        check_labels(labels)
        wanted = plan(mounts, temporary=temporary)
        with self._lock:
            id = self._reserve(scope, name, labels)
            try:
                info = self._made(id, wanted, temporary=temporary)
                info.name = name
                self._finish(id, info)
            except BaseException:
                with contextlib.suppress(errors.GantryError, OSError):
                    self._undo(id)
                raise
            info.labels.update(labels)
            return info

    def _reserve(self, scope: Scope, name: str, labels: Mapping[str, str]) -> int:
        with self._database.transaction() as tx:
            tx.claim(scope, "mounts", name)
            old = tx.row("SELECT id, state FROM mounts WHERE namespace = ? AND name = ?", (scope.namespace, name))
            if old is not None and old[1] == WHOLE:
                raise errors.AlreadyExists(f"mount {name!r}: already exists")
        if old is not None:
            self._undo(old[0])
        with self._database.transaction() as tx:
            now = time.time_ns()
            values = (scope.namespace, name, pack_labels(labels), MAKING, b"", now, now)
            made = tx.execute(
                "INSERT INTO mounts (namespace, name, labels, state, data, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            assert made.lastrowid is not None
            return made.lastrowid

    def _finish(self, id: int, info: ActivationInfo) -> None:
        with self._database.transaction() as tx:
            values = (WHOLE, info.SerializeToString(), time.time_ns(), id)
            tx.execute("UPDATE mounts SET state = ?, data = ?, updated_at = ? WHERE id = ?", values)

    def _made(self, id: int, wanted: Plan, *, temporary: bool) -> ActivationInfo:
        os.mkdir(f"{self._targets}/{id}", 0o700)
        active: list[ActiveMount] = []
        for number, step in enumerate(wanted.steps[: wanted.own]):
            self._transform(step, active)
            point = f"{self._targets}/{id}/{number:03d}"
            _mount(step.mount, point)
            made = ActiveMount(mount=step.mount, mount_point=point)
            made.mounted_at.FromNanoseconds(time.time_ns())
            active.append(made)
        left = wanted.steps[wanted.own :]
        if left:
            self._transform(left[0], active)
        system = [step.mount for step in left]
        if temporary and active:
            system.append(Mount(type="bind", source=active[-1].mount_point, options=["rbind"]))
        return ActivationInfo(active=active, system=system)

    def _transform(self, step: Step, active: Sequence[ActiveMount]) -> None:
        for transform in step.transforms:
            if transform == "format":
                fill_in(step.mount, active)
            elif transform == "mkdir":
                files.make_directories(step.mount, self._roots)
            else:
                files.make_file_system(step.mount, self._roots)

    def deactivate(self, scope: Scope, name: str) -> None:
        """Take it back. Raises ``NotFound``, ``FailedPrecondition`` while somebody uses it: it is all there then."""
        with self._lock:
            id, *_ = self._row(scope, name)
            self._undo(id)
            with self._database.transaction() as tx:
                tx.execute(
                    "DELETE FROM lease_resources WHERE namespace = ? AND type = 'mounts' AND id = ?",
                    (scope.namespace, name),
                )

    def _undo(self, id: int) -> None:
        """Unmount in reverse order, then forget. What is busy stops it, and is still known."""
        top = f"{self._targets}/{id}"
        with contextlib.suppress(FileNotFoundError):
            for place in sorted(os.listdir(top), reverse=True):
                point = f"{top}/{place}"
                if os.path.islink(point):
                    kernel.release_loop(point)
                else:
                    kernel.unmount(point)
                    os.rmdir(point)
            os.rmdir(top)
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM mounts WHERE id = ?", (id,))

    def _row(self, scope: Scope, name: str) -> tuple[int, str, bytes]:
        row = self._database.row(
            "SELECT id, labels, data FROM mounts WHERE namespace = ? AND name = ? AND state = ?",
            (scope.namespace, name, WHOLE),
        )
        if row is None:
            raise errors.NotFound(f"mount {name!r} in namespace {scope.namespace!r}: not found")
        return row[0], row[1], row[2]

    def info(self, scope: Scope, name: str) -> ActivationInfo:
        """Raises ``NotFound``."""
        _, labels, data = self._row(scope, name)
        return _info(labels, data)

    def has(self, scope: Scope, name: str) -> bool:
        """Whether there is such an activation."""
        values = (scope.namespace, name, WHOLE)
        return (
            self._database.row("SELECT 1 FROM mounts WHERE namespace = ? AND name = ? AND state = ?", values)
            is not None
        )

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[ActivationInfo]:
        """All that match one of ``filters`` (``name``, ``labels.…``), by name."""
        matches = filter_language.compile_filters(tuple(filters))
        rows = self._database.rows(
            "SELECT labels, data FROM mounts WHERE namespace = ? AND state = ? ORDER BY name", (scope.namespace, WHOLE)
        )
        found = (_info(labels, data) for labels, data in rows)
        return [info for info in found if matches(filter_language.lookup_in({"name": info.name}, info.labels))]

    def update(self, scope: Scope, info: ActivationInfo, fields: Sequence[str] = ()) -> ActivationInfo:
        """Change labels: nothing else of what is mounted can change. Raises ``NotFound``, ``InvalidArgument``."""
        with self._database.transaction() as tx:
            id, packed, data = self._row(scope, info.name)
            labels = masked(unpack_labels(packed), info.labels, fields, f"mount {info.name!r}")
            values = (pack_labels(labels), time.time_ns(), id)
            tx.execute("UPDATE mounts SET labels = ?, updated_at = ? WHERE id = ?", values)
        return _info(pack_labels(labels), data)

    def load(self) -> None:
        """At the start: undo what was being made or removed, and forget what is not mounted any more."""
        with self._lock:
            for id, state, data in self._database.rows("SELECT id, state, data FROM mounts"):
                if state != WHOLE or not _is_there(data):
                    self._try_undo(id)
            known = {str(id) for (id,) in self._database.rows("SELECT id FROM mounts")}
            for name in set(os.listdir(self._targets)) - known:
                self._try_undo(int(name))

    def cleanup(self) -> None:
        """Undo what the collection has marked as garbage; what is busy is tried again by the next one."""
        doomed = self._database.rows("SELECT id FROM mounts WHERE state = ?", (DOOMED,))
        for (id,) in doomed:
            with self._lock:
                self._try_undo(id)

    def _try_undo(self, id: int) -> None:
        try:
            self._undo(id)
        except (errors.GantryError, OSError) as error:
            _log.warning("mounts not removed yet", id=id, error=str(error))


def _mount(mount: Mount, point: str) -> None:
    if mount.type == "loop":
        kernel.keep_loop(mount.source, point, read_only="ro" in mount.options)
        return
    os.mkdir(point, 0o700)
    try:
        kernel.mount(mount.type, mount.source, point, mount.options)
    except BaseException:
        os.rmdir(point)
        raise


def _is_there(data: bytes) -> bool:
    active = ActivationInfo.FromString(data).active
    loops = (entry.mount_point for entry in active if entry.mount.type == "loop")
    others = (entry.mount_point for entry in active if entry.mount.type != "loop")
    return all(map(os.path.exists, loops)) and all(map(kernel.is_mounted, others))


def _info(labels: str, data: bytes) -> ActivationInfo:
    info = ActivationInfo.FromString(data)
    info.labels.clear()
    info.labels.update(unpack_labels(labels))
    return info
