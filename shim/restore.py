"""Taking over from a killed shim.

Rule: what is on disk says what there was, the keeper has the descriptors, and the kernel knows who lives. A process
without an exit record is followed by its pidfd; one that ended unseen gets its record now.
"""

from __future__ import annotations

import contextlib
import os
import stat

from oci import errors
from protos.rawlog import STREAM_NAMES
from protos.shim_messages import STATUS_CREATED, STATUS_PAUSED, STATUS_RUNNING
from shim.bundle import CREATED, STARTING, Bundle, ProcessRecord, start_ticks
from shim.container import Container
from shim.io import ProcessIO
from shim.loop import report
from shim.process import Process
from shim.service import TaskService
from shim.stdio import RAWLOG, Uris, forget_attach_socket, parse

_STATUS = {"created": STATUS_CREATED, "running": STATUS_RUNNING, "paused": STATUS_PAUSED}


def restore(service: TaskService) -> None:
    """Rebuild the container of the service's bundle; nothing when Create had not finished there."""
    config = service.config
    bundle = Bundle(config.bundle)
    options = bundle.read_options()
    records = bundle.read_processes()
    if options is None:
        report(f"bundle {config.bundle} holds no container to take over")
        return
    uris = Uris(*options["uris"])
    container = service.new_container(config.container_id, config.bundle, uris, options["options"])
    if not records or records[0].exec_id:
        _unmake(container)
        return
    service.containers[config.container_id] = container
    parked = container.parking.take()
    for record in records[1:]:
        process = Process(
            record.exec_id, Uris(record.stdin, record.stdout, record.stderr, record.terminal), record.spec
        )
        container.execs[record.exec_id] = process
        _restore_process(service, container, process, record, parked)
    _restore_process(service, container, container.init, records[0], parked)  # its exit comes after every exec's
    for descriptor in parked.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    if container.init.running:
        container.parking.put(container.everything())
        container.watch_oom()
        _restore_status(container)
        if any(process.phase == STARTING for process in container.execs.values()):
            container.end_untold_execs()


def _unmake(container: Container) -> None:
    """Create was under way and was never answered: what it had made so far goes."""
    report(f"the create of {container.container_id} was cut off: it is undone")
    try:
        container.runtime.delete(container.container_id)
    except errors.GantryError as error:
        report(f"cannot undo the create of {container.container_id}: {error}")
    forget_attach_socket(container.init.uris)
    container.parking.drop()
    container.parking.close()


def _restore_status(container: Container) -> None:
    try:
        status = container.runtime.status(container.container_id)
    except errors.GantryError as error:
        report(f"the runtime does not know {container.container_id}: {error}: it counts as running")
        status = "running"
    container.init.status = _STATUS.get(status, STATUS_RUNNING)
    if container.init.phase == CREATED and container.bundle.restored() and container.init.status == STATUS_RUNNING:
        container.init.status = STATUS_CREATED  # it goes on already, but nobody has said so
    if container.init.phase == STARTING and container.init.status != STATUS_CREATED:
        _finish_start(container)


def _finish_start(container: Container) -> None:
    """Somebody had made up their mind to start init; whether it was told, they did not live to say."""
    try:
        container.runtime.start(container.container_id, resume=True)
    except errors.GantryError as error:
        report(f"the start of {container.container_id} was not finished: {error}")
    container.publish_start()


def _restore_process(
    service: TaskService, container: Container, process: Process, record: ProcessRecord, parked: dict[str, int]
) -> None:
    """Give ``process`` its past back; takes what belongs to it out of ``parked``."""
    mine = taken_from(parked, record.exec_id)
    exit_record = container.bundle.read_exit(record.exec_id)
    process.pid, process.phase = record.pid, record.phase
    if exit_record is not None or record.pid == 0:
        _close(mine)
        if exit_record is not None:
            if process is container.init:
                process.io = ProcessIO.restore(service.loop, process.uris, {})  # attach clients may still come
            process.ended(exit_record)
            # The old shim may have been killed between the record and the event: better twice than never.
            if exit_record.pid:
                container.publish_exit(process, exit_record)
        elif record.phase == STARTING:
            container.never_ran(process)
        return
    process.pidfd = mine.pop("pidfd", -1)
    if process.pidfd < 0:
        process.pidfd = _open_pidfd(record)
    if process.pidfd >= 0 and not mine:
        mine = _log_pipes_of(record)
    process.status = STATUS_RUNNING
    process.io = ProcessIO.restore(service.loop, process.uris, mine)
    container.hook_stdin(process)
    if process.pidfd >= 0:
        container.watch_orphan(process)
    else:
        container.lost(process)


def taken_from(parked: dict[str, int], exec_id: str) -> dict[str, int]:
    """Take the descriptors of one process out of ``parked``; by the names that its io gave them."""
    prefix = f"exec.{exec_id}/" if exec_id else ""
    return {
        name.removeprefix(prefix): parked.pop(name)
        for name in list(parked)
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }


def _open_pidfd(record: ProcessRecord) -> int:
    """A pidfd of the very process that was recorded; -1 when it is gone."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(record.pid)
        if start_ticks(record.pid) == record.start_ticks:
            return pidfd
        os.close(pidfd)
    return -1


def _log_pipes_of(record: ProcessRecord) -> dict[str, int]:
    """When the keeper died too: the log pipes, by way of the process's own descriptors."""
    found: dict[str, int] = {}
    for number, name in STREAM_NAMES.items():
        uri = record.stdout if number == 1 else record.stderr
        if record.terminal or parse(uri).kind != RAWLOG:
            continue
        with contextlib.suppress(OSError):
            path = f"/proc/{record.pid}/fd/{number}"
            if stat.S_ISFIFO(os.stat(path).st_mode):
                found[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return found


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
