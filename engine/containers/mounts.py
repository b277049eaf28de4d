"""From ``Binds``, ``Mounts``, ``Volumes`` and ``VolumesFrom`` to one list of mount points.

Rule: everything is parsed and checked before anything is made; ``realize`` then makes directories and volumes.
``HostConfig.Tmpfs`` is not among the results: the spec builder reads it itself, as inspect shows it apart too.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable

import msgspec

from engine.containers import subpaths
from engine.containers.config import BindOptions, ContainerConfig, HostConfig, Mount
from engine.containers.model import Container, MountPoint
from engine.containers.volumes import ANONYMOUS_LABEL, Volumes
from engine.spec.mounts import recursive_readonly
from oci.errors import InvalidArgument, NotFound, Unimplemented

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_FLAGS = frozenset({"ro", "rw", "z", "Z", "nocopy", "cached", "delegated", "consistent"})


def _check_destination(path: str, whole: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(
            f"invalid volume specification: '{whole}': invalid mount path: '{path}' mount path must be absolute"
        )
    clean = posixpath.normpath(path)
    clean = "/" + clean.lstrip("/")
    if clean == "/":
        raise InvalidArgument(
            f"invalid volume specification: '{whole}': invalid specification: destination can't be '/'"
        )
    return clean


def parse_bind(text: str) -> MountPoint:
    """One entry of ``Binds``: ``/host:/container[:options]``, ``volume:/container[:options]`` or ``/container``."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return MountPoint(type="volume", destination=_check_destination(text, text), driver="local", anonymous=True)
    source, destination = parts[0], _check_destination(parts[1], text)
    mode = parts[2] if len(parts) == 3 else ""
    flags = [f for f in mode.split(",") if f]
    unknown = [f for f in flags if f not in _FLAGS and f not in PROPAGATIONS]
    if unknown or ("ro" in flags and "rw" in flags):
        raise InvalidArgument(f"invalid volume specification: '{text}': invalid mode: {mode}")
    propagation = next((f for f in flags if f in PROPAGATIONS), "")
    if source.startswith("/"):
        return MountPoint(
            type="bind",
            source=posixpath.normpath(source),
            destination=destination,
            mode=mode,
            rw="ro" not in flags,
            propagation=propagation or "rprivate",
        )
    return MountPoint(
        type="volume",
        name=source,
        destination=destination,
        driver="local",
        mode=mode or "z",
        rw="ro" not in flags,
        copy_up="nocopy" not in flags,
    )


def _tmpfs_options(mount: Mount) -> tuple[str, ...]:
    out = ["nosuid", "nodev", "noexec"]
    if mount.tmpfs_options is not None:
        if mount.tmpfs_options.size_bytes:
            out.append(f"size={mount.tmpfs_options.size_bytes}")
        if mount.tmpfs_options.mode:
            out.append(f"mode={mount.tmpfs_options.mode:o}")
        for pair in mount.tmpfs_options.options:
            if pair[0] in ("exec", "suid", "dev"):
                out.remove(f"no{pair[0]}")
            else:
                out.append("=".join(pair))
    return tuple(out)


def _bind_mount(mount: Mount, destination: str) -> MountPoint:
    if not mount.source:
        raise InvalidArgument('invalid mount config for type "bind": field Source must not be empty')
    if not mount.source.startswith("/"):
        raise InvalidArgument(
            f'invalid mount config for type "bind": invalid mount path: {mount.source!r} mount path must be absolute'
        )
    options = mount.bind_options
    creates = options is not None and options.create_mountpoint
    if not creates and not os.path.lexists(mount.source):
        raise InvalidArgument(
            f'invalid mount config for type "bind": bind source path does not exist: {mount.source}',
            hint="create it, or use -v, which makes the directory",
        )
    propagation = (options.propagation if options else "") or "rprivate"
    if propagation not in PROPAGATIONS:
        raise InvalidArgument(f'invalid mount config for type "bind": invalid propagation mode: {propagation}')
    _check_read_only(mount, propagation)
    return MountPoint(
        type="bind",
        source=posixpath.normpath(mount.source),
        destination=destination,
        rw=not mount.read_only,
        propagation=propagation,
        recursive=not (options is not None and options.non_recursive),
        writable_below=options is not None and options.read_only_non_recursive,
    )


def _check_read_only(mount: Mount, propagation: str) -> None:
    options = mount.bind_options or BindOptions()
    if (options.read_only_non_recursive or options.read_only_force_recursive) and not mount.read_only:
        name = "ReadOnlyNonRecursive" if options.read_only_non_recursive else "ReadOnlyForceRecursive"
        why = f'mount is set "{name}" but not set "ReadOnly"'
    elif not options.read_only_force_recursive:
        return
    elif options.read_only_non_recursive:
        why = "ReadOnlyForceRecursive conflicts with ReadOnlyNonRecursive"
    elif options.non_recursive:
        why = "ReadOnlyForceRecursive conflicts with NonRecursive"
    elif propagation != "rprivate":
        why = f"ReadOnlyForceRecursive needs the propagation rprivate, not {propagation}"
    elif not recursive_readonly():
        why = "this kernel cannot make a mount read-only with all that is mounted below it (Linux 5.12 can)"
    else:
        return
    raise InvalidArgument(f'invalid mount config for type "bind": {why}')


def _volume_mount(mount: Mount, destination: str) -> MountPoint:
    options = mount.volume_options
    driver = options.driver_config if options is not None else None
    return MountPoint(
        type="volume",
        name=mount.source,
        destination=destination,
        driver=(driver.name if driver is not None else "") or "local",
        driver_options=driver.options if driver is not None else None,
        labels=options.labels if options is not None else None,
        mode="z",
        rw=not mount.read_only,
        copy_up=not (options is not None and (options.no_copy or options.subpath)),
        anonymous=not mount.source,
        subpath=subpaths.check(options.subpath) if options is not None else "",
    )


def parse_mount(mount: Mount) -> MountPoint:
    """One entry of ``Mounts``."""
    if not mount.target:
        raise InvalidArgument(f'invalid mount config for type "{mount.type}": field Target must not be empty')
    destination = _check_destination(mount.target, mount.target)
    if mount.type == "bind":
        return _bind_mount(mount, destination)
    if mount.type == "volume":
        return _volume_mount(mount, destination)
    if mount.type == "tmpfs":
        if mount.source:
            raise InvalidArgument('invalid mount config for type "tmpfs": field Source must not be specified')
        options = _tmpfs_options(mount)
        return MountPoint(type="tmpfs", destination=destination, rw=not mount.read_only, options=options)
    if mount.type in ("image", "npipe", "cluster"):
        raise Unimplemented(f"mounts of type {mount.type!r} are not built", hint="use bind, volume or tmpfs")
    raise InvalidArgument(f'mount type unknown: "{mount.type}"', hint="use bind, volume or tmpfs")


def _inherited(entry: str, find: Callable[[str], Container]) -> list[MountPoint]:
    reference, _, mode = entry.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise InvalidArgument(f"invalid mode for volumes-from: {mode}")
    return [
        msgspec.structs.replace(point, rw=point.rw and mode != "ro", anonymous=False, copy_up=False)
        for point in find(reference).mounts
        if point.type != "tmpfs"
    ]


def _driven(point: MountPoint, host: HostConfig) -> MountPoint:
    """A volume by the driver that ``--volume-driver`` names."""
    if point.type != "volume":
        return point
    return msgspec.structs.replace(point, driver=host.volume_driver or "local")


def plan(config: ContainerConfig, host: HostConfig, find: Callable[[str], Container]) -> list[MountPoint]:
    """The mounts a new container gets; volumes without a name are still to be made.

    ``find`` looks up the containers named in ``VolumesFrom``. Raises ``InvalidArgument`` with Docker's texts.
    """
    points: dict[str, MountPoint] = {}
    for entry in host.volumes_from or ():
        points.update((p.destination, p) for p in _inherited(entry, find))
    asked: set[str] = set()
    explicit: Iterable[MountPoint] = [
        *(_driven(parse_bind(text), host) for text in host.binds or ()),
        *(parse_mount(mount) for mount in host.mounts or ()),
    ]
    for point in explicit:
        if point.destination in asked or point.destination in (host.tmpfs or {}):
            raise InvalidArgument(f"Duplicate mount point: {point.destination}")
        asked.add(point.destination)
        points[point.destination] = point
    for path in config.volumes or {}:
        destination = _check_destination(path, path)
        if destination not in points and destination not in (host.tmpfs or {}):
            point = MountPoint(type="volume", destination=destination, anonymous=True, copy_up=True)
            points[destination] = _driven(point, host)
    # Parents are mounted before what lies inside them.
    return sorted(points.values(), key=lambda p: p.destination.count("/"))


def realize(points: list[MountPoint], volumes: Volumes) -> tuple[MountPoint, ...]:
    """Make the volumes and missing bind sources of ``points``; the mounts with host paths filled in.

    A volume's ``copy_up`` stays true only where the volume's directory is still empty.
    """
    out = []
    for point in points:
        if point.type == "volume" and not point.source:
            name = point.name or os.urandom(32).hex()
            labels = {ANONYMOUS_LABEL: "", **(point.labels or {})} if point.anonymous else point.labels
            try:
                volume, _ = volumes.create(name, driver=point.driver, labels=labels, options=point.driver_options)
            except NotFound as error:  # which clients would take for the image
                raise InvalidArgument(error.message, hint="volumes have the driver local alone") from error
            path = volumes.path(volume.name)
            copy_up = point.copy_up and not volume.options and not os.listdir(path)
            made = msgspec.structs.replace(point, name=volume.name, source=path, copy_up=copy_up)
            out.append(msgspec.structs.replace(made, labels=None, driver_options=None))
        else:
            if point.type == "bind" and not os.path.lexists(point.source):
                os.makedirs(point.source, mode=0o755, exist_ok=True)
            out.append(point)
    return tuple(out)
