"""The manager that manages nothing: the container stays in its caller's cgroups (``--cgroup-manager disabled``)."""

from __future__ import annotations

from runc_py.cgroups.base import CgroupError, CgroupManager, ContainerMounts
from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class DisabledManager(CgroupManager):
    """Every limit is refused, because silently unlimited containers are worse than an error."""

    kind = "disabled"

    def __init__(self) -> None:
        self.paths = {}

    def create(self) -> None:
        return

    def apply(self, pid: int) -> None:
        return

    def set(self, resources: dict[str, Any]) -> None:
        asked = [key for key, value in resources.items() if value and key != "devices"]
        if asked:
            raise CgroupError(f"cgroups are disabled: linux.resources.{asked[0]} cannot be applied")

    def pids(self, recursive: bool = True) -> list[int]:
        raise CgroupError("cgroups are disabled: the container's processes are not known")

    def freeze(self) -> None:
        raise CgroupError("cgroups are disabled: the container cannot be paused")

    def thaw(self) -> None:
        raise CgroupError("cgroups are disabled: the container cannot be resumed")

    def frozen(self) -> bool:
        return False

    def kill_all(self, sig: int) -> None:
        raise CgroupError("cgroups are disabled: only the container's init process can be signalled")

    def destroy(self) -> None:
        return

    def stats(self) -> dict[str, Any]:
        raise CgroupError("cgroups are disabled: there are no statistics")

    def container_mounts(self, *, cgroup_namespace: bool) -> ContainerMounts:
        return ContainerMounts((), ())
