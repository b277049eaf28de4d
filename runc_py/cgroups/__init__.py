"""Control groups: one interface, and the choice of the manager by what the host has mounted.

    manager = manager_for("/docker/abc", "abc", driver="cgroupfs")
    manager.create(); manager.set(resources); manager.apply(pid) … manager.destroy()

Rule: a hybrid host (v1 controllers plus a v2 tree beside them) is a v1 host, as it is for runc.
"""

from __future__ import annotations

from runc_py.cgroups.base import CgroupError, CgroupManager, CgroupMount, ContainerMounts
from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["CgroupError", "CgroupManager", "CgroupMount", "ContainerMounts", "load", "manager_for", "shown_in"]


def manager_for(
    cgroups_path: str, container_id: str, *, driver: str = "cgroupfs", annotations: dict[str, str] | None = None
) -> CgroupManager:
    """The manager for a container by ``linux.cgroupsPath`` and driver ``cgroupfs``, ``systemd`` or ``disabled``.

    With ``cgroupfs``: an absolute path is below the root of each hierarchy, a relative one below the caller's own
    cgroup (v2: beside it, because a v2 cgroup with processes has no children with controllers), "" means the id.
    With ``systemd``: ``slice:prefix:name``, or ""; ``annotations`` may set properties of the unit.
    Raises CgroupError for a path with ``..``.
    """
    if driver == "disabled":
        from runc_py.cgroups.disabled import DisabledManager

        return DisabledManager()
    if driver == "systemd":
        from runc_py.cgroups.systemd import systemd_manager

        return systemd_manager(cgroups_path, container_id, annotations)
    if driver != "cgroupfs":
        raise CgroupError(f'unknown cgroup driver "{driver}": use cgroupfs, systemd or disabled')
    from runc_py.cgroups import layout

    host = layout.current()
    if host.unified:
        from runc_py.cgroups.v2 import UnifiedManager

        return UnifiedManager(layout.unified_path(host, cgroups_path, container_id))
    from runc_py.cgroups.v1 import LegacyManager

    return LegacyManager(layout.legacy_paths(host, cgroups_path, container_id))


def load(saved: dict[str, Any]) -> CgroupManager:
    """The manager that ``saved`` (from ``CgroupManager.save``) describes."""
    kind = saved.get("kind")
    paths: dict[str, str] = saved.get("paths") or {}
    if kind == "disabled":
        from runc_py.cgroups.disabled import DisabledManager

        return DisabledManager()
    if kind == "v1":
        from runc_py.cgroups.v1 import LegacyManager

        return LegacyManager(paths)
    if kind == "v2":
        from runc_py.cgroups.v2 import UnifiedManager

        return UnifiedManager(paths[""])
    if kind in ("systemd-v1", "systemd-v2"):
        from runc_py.cgroups.systemd import load_systemd

        return load_systemd(saved)
    raise CgroupError(f'saved state names an unknown kind of cgroup manager: "{kind}"')


def shown_in(spec: dict[str, Any], manager: CgroupManager) -> ContainerMounts | None:
    """What a mount of type cgroup in ``spec`` means; None when it has none, or no cgroups."""
    wanted = any(entry.get("type") in ("cgroup", "cgroup2") for entry in spec.get("mounts") or ())
    if not wanted or manager.kind == "disabled":
        return None
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    return manager.container_mounts(cgroup_namespace=any(entry["type"] == "cgroup" for entry in namespaces))
